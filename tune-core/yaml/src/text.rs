//! Text that a `const fn` can write: messages are the same, be they made by
//! the compiler or at run time.

/// Text of at most `N` bytes. What does not fit is left out, and `...` says so.
#[derive(Debug, Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
    full: bool,
}

const CUT: &str = "...";

impl<const N: usize> Text<N> {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0, full: false }
    }

    /// What has been written.
    pub const fn as_str(&self) -> &str {
        match std::str::from_utf8(self.bytes.split_at(self.len).0) {
            Ok(text) => text,
            // Texts are cut between characters only.
            Err(_) => "",
        }
    }

    /// Whether nothing has been written.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `text`.
    pub const fn push(&mut self, text: &str) {
        if self.full {
            return;
        }
        let bytes = text.as_bytes();
        let mut end = bytes.len();
        if self.len + end + CUT.len() > N {
            self.full = true;
            end = (N - self.len).saturating_sub(CUT.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
        }
        self.copy(bytes, end);
        if self.full {
            self.copy(CUT.as_bytes(), CUT.len());
        }
    }

    const fn copy(&mut self, bytes: &[u8], count: usize) {
        let mut at = 0;
        while at < count && self.len < N {
            self.bytes[self.len] = bytes[at];
            self.len += 1;
            at += 1;
        }
    }

    /// Adds several texts.
    pub const fn push_all(&mut self, texts: &[&str]) {
        let mut at = 0;
        while at < texts.len() {
            self.push(texts[at]);
            at += 1;
        }
    }

    /// Adds `text` so many times.
    pub const fn repeat(&mut self, text: &str, times: usize) {
        let mut done = 0;
        while done < times && !self.full {
            self.push(text);
            done += 1;
        }
    }

    /// Adds a name in backticks.
    pub const fn name(&mut self, name: &str) {
        self.push_all(&["`", name, "`"]);
    }

    /// Adds the first words of what may be a whole file.
    pub const fn short(&mut self, text: &str) {
        let text = text.trim_ascii();
        let bytes = text.as_bytes();
        let (mut end, mut chars) = (0, 0);
        while end < bytes.len() && bytes[end] != b'\n' {
            if text.is_char_boundary(end) {
                if chars == 60 {
                    break;
                }
                chars += 1;
            }
            end += 1;
        }
        let (start, rest) = text.split_at(end);
        self.push(start.trim_ascii_end());
        if !rest.is_empty() {
            self.push(CUT);
        }
    }

    /// Adds a whole number.
    pub const fn int(&mut self, int: i128) {
        if int < 0 {
            self.push("-");
        }
        self.digits(int.unsigned_abs(), 0);
    }

    /// Adds a number in decimal, filled up with zeros to `least` digits.
    const fn digits(&mut self, number: u128, least: usize) {
        let mut digits = [b'0'; 40];
        let (mut at, mut rest) = (digits.len(), number);
        while rest > 0 || digits.len() - at < least || at == digits.len() {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        if let Ok(digits) = std::str::from_utf8(digits.split_at(at).1) {
            self.push(digits);
        }
    }

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

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> std::fmt::Display for Text<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
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
        let mut text = Text::<64>::new();
        text.int(i128::MIN);
        assert_eq!(text.as_str(), i128::MIN.to_string());
    }

    #[test]
    fn too_much_text_is_cut_between_characters() {
        let mut text = Text::<12>::new();
        text.push("üüü");
        text.push("üüü");
        text.push("never");
        assert_eq!(text.as_str(), "üüüü...");
        let mut text = Text::<12>::new();
        text.push("123456789");
        assert_eq!(text.as_str(), "123456789");
    }

    #[test]
    fn the_first_words() {
        let short = |text: &str| {
            let mut out = Text::<512>::new();
            out.short(text);
            out.as_str().to_owned()
        };
        assert_eq!(short(" a b \n c"), "a b...");
        assert_eq!(short(&"ü".repeat(61)), format!("{}...", "ü".repeat(60)));
        assert_eq!(short(&"ü".repeat(60)), "ü".repeat(60));
    }
}
