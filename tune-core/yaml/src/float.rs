//! Numbers in their shortest form, written by a `const fn`.

use crate::Text;

impl<const N: usize> Text<N> {
    /// Adds the shortest number that reads back as `float`, as `{:?}` writes
    /// it. For what has more than 22 decimal places or is above 1e34, which no
    /// config needs, mantissa and exponent to the base 2.
    pub const fn float(&mut self, float: f64) {
        if !float.is_finite() {
            return self.push(if float.is_nan() { "NaN" } else { "inf" });
        }
        if float.is_sign_negative() {
            self.push("-");
        }
        let bits = float.to_bits();
        let fraction = (bits & ((1 << 52) - 1)) as u128;
        let (mantissa, exponent) = match (bits >> 52) & 0x7ff {
            0 => (fraction, -1074),
            exponent => (fraction | 1 << 52, exponent as i32 - 1075),
        };
        if mantissa == 0 {
            return self.push("0.0");
        }
        match shortest(mantissa, exponent) {
            Some((digits, places)) => self.decimal(digits, places),
            None => {
                self.int(mantissa as i128);
                self.push("*2^");
                self.int(exponent as i128);
            }
        }
    }

    /// Adds `digits / 10^places` in the form of `{:?}`.
    const fn decimal(&mut self, mut digits: u128, mut places: usize) {
        let mut count = digits.ilog10() as usize + 1;
        let magnitude = count as i32 - places as i32;
        if magnitude > 16 || magnitude < -3 {
            while digits.is_multiple_of(10) {
                digits /= 10;
                count -= 1;
            }
            let one = 10_u128.pow(count as u32 - 1);
            self.digits(digits / one, 0);
            if count > 1 {
                self.push(".");
                self.digits(digits % one, count - 1);
            }
            self.push("e");
            return self.int((magnitude - 1) as i128);
        }
        if places == 0 {
            digits *= 10;
            places = 1;
        }
        let one = 10_u128.pow(places as u32);
        self.digits(digits / one, 0);
        self.push(".");
        self.digits(digits % one, places);
    }
}

/// The fewest decimal places that tell `mantissa * 2^exponent` from every
/// other number, as digits and places; in whole numbers, and so exact.
const fn shortest(mantissa: u128, exponent: i32) -> Option<(u128, usize)> {
    if exponent >= 0 {
        return if exponent <= 60 {
            whole(mantissa << exponent, 1 << exponent, mantissa.is_multiple_of(2))
        } else {
            None
        };
    }
    let scale = -exponent as u32;
    let (mut places, mut power) = (0, 1_u128);
    while let (Some(scaled), true) = (mantissa.checked_mul(power), scale < 126) {
        let one = 1_u128 << scale;
        let digits = scaled / one + (scaled % one >= one / 2) as u128;
        let error = scaled.abs_diff(digits * one);
        if digits > 0 && is_near(error, power, mantissa.is_multiple_of(2)) {
            return Some((digits, places));
        }
        places += 1;
        power = match power.checked_mul(10) {
            Some(power) => power,
            None => return None,
        };
    }
    None
}

/// The same for a whole number: as many zeros at its end as its `step` allows.
const fn whole(number: u128, step: u128, is_even: bool) -> Option<(u128, usize)> {
    let (mut best, mut power) = (number, 10_u128);
    while power <= number {
        let rest = number % power;
        let near = number - rest + if rest >= power / 2 { power } else { 0 };
        if !is_near(number.abs_diff(near), step, is_even) {
            break;
        }
        best = near;
        power *= 10;
    }
    Some((best, 0))
}

/// Less than half a step between two numbers; the half itself goes to the even one.
const fn is_near(error: u128, step: u128, is_even: bool) -> bool {
    2 * error < step || is_even && 2 * error == step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_by_the_standard_library() {
        let float = |float: f64| {
            let mut text = Text::<64>::new();
            text.float(float);
            text.as_str().to_owned()
        };
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        for number in [0.0, -0.0, 1.0, 0.1, 0.3, 1e-6, 2e-5, 1e-5, 1e-4, 123.456, 1e15, 1e16, 1e17, 0.999, 1e22, 5e33] {
            assert_eq!(float(number), format!("{number:?}"));
            assert_eq!(float(-number), format!("{:?}", -number));
        }
        for _ in 0..20_000 {
            let count = 1 + below(17) as u32;
            let decimal = format!("{}e-{}", 1 + below(10_u64.pow(count)), below(18));
            let number = decimal.parse().unwrap();
            assert_eq!(float(number), format!("{number:?}"));
            let any = f64::from_bits(below(u64::MAX >> 1));
            if (1e-5..1e34).contains(&any) {
                assert_eq!(float(any), format!("{any:?}"));
            }
        }
        assert_eq!(float(5e-324), "1*2^-1074");
    }
}
