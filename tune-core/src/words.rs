//! Words of messages.

use std::fmt::Display;

/// A number of things: `1 sample`, `7 samples`.
///
/// ```
/// assert_eq!(tune_core::words::count(1, "sample"), "1 sample");
/// assert_eq!(tune_core::words::count(7_u64, "sample"), "7 samples");
/// assert_eq!(tune_core::words::count(0, "process"), "0 processes");
/// ```
pub fn count<N: Copy + Display + PartialEq + From<u8>>(n: N, thing: &str) -> String {
    let ending = match n == N::from(1) {
        true => "",
        false if thing.ends_with('s') || thing.ends_with("ch") => "es",
        false => "s",
    };
    format!("{n} {thing}{ending}")
}

/// The word for one thing, or that for several.
///
/// ```
/// assert_eq!(tune_core::words::for_number(1, "is", "are"), "is");
/// assert_eq!(tune_core::words::for_number(0_u64, "is", "are"), "are");
/// ```
pub fn for_number<'w, N: Copy + PartialEq + From<u8>>(n: N, one: &'w str, several: &'w str) -> &'w str {
    if n == N::from(1) { one } else { several }
}
