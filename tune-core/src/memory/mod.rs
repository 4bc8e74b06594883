//! What memory there is for this process, and what it holds.

mod available;
mod held;

pub use available::{Available, available, parse_size};
pub(crate) use available::{address_limit, available_beside, of_variable};
pub use held::{peak_memory, resident_memory};

/// Precise to a hundredth, which plans are: `51.3 MiB`, `1126 MiB`, `12.3 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    match mib {
        mib if mib < 99.95 => format!("{mib:.1} MiB"),
        mib if mib < 10_240.0 => format!("{mib:.0} MiB"),
        mib => format!("{:.1} GiB", mib / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_precise_to_a_hundredth() {
        let mib = |n: f64| size((n * f64::from(1 << 20)) as u64);
        assert_eq!([mib(3.17), mib(99.96), mib(1126.4)], ["3.2 MiB", "100 MiB", "1126 MiB"]);
        assert_eq!([mib(10_240.0), mib(1024.0 * 1024.0)], ["10.0 GiB", "1024.0 GiB"]);
    }
}
