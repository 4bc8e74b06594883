//! Numbers as people read them on a console.

/// `812 B`, `3.4 MiB`, `12.0 GiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0);
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Three digits or so: `8.25`, `431`, `12.3k`, `4.6M`.
pub(super) fn count(n: f64) -> String {
    match n {
        n if n < 9.995 => format!("{n:.2}"),
        n if n < 999.5 => format!("{n:.0}"),
        n if n < 999_950.0 => format!("{:.1}k", n / 1e3),
        n => format!("{:.1}M", n / 1e6),
    }
}

/// `42s`, `3m07s`, `5h09m`.
pub(super) fn seconds(s: f64) -> String {
    // A cast saturates, so that a nonsensical estimate is shown and not a panic.
    let s = s.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3 << 19), "1.5 MiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(count(0.0), "0.00");
        assert_eq!(count(9.999), "10");
        assert_eq!(count(431.4), "431");
        assert_eq!(count(999.9), "1.0k");
        assert_eq!(count(12_345.0), "12.3k");
        assert_eq!(count(4_560_000.0), "4.6M");
        assert_eq!(seconds(59.6), "1m00s");
        assert_eq!(seconds(187.0), "3m07s");
        assert_eq!(seconds(18_540.0), "5h09m");
        assert_eq!(seconds(f64::NAN), "0s");
    }
}
