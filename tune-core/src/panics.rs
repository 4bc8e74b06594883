//! Panics of other people's code that are part of the work: caught, and told as an error instead of on stderr.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is to be told by [`caught`] alone.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What `work` returns, or the message of its panic, which is shown nowhere else.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let shown = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                shown(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    done.map_err(|panic| message(&*panic))
}

/// What a panic says.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    // The first line: an assertion goes on with the values that it compares.
    text.as_deref().and_then(|text| text.lines().next()).unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_message_and_the_next_is_caught_as_well() {
        assert_eq!(caught(|| 1), Ok(1));
        let number = 3;
        assert_eq!(caught(|| assert!(number == 4, "no {number}")), Err("no 3".to_owned()));
        assert_eq!(caught(|| assert_eq!(number, 4)), Err("assertion `left == right` failed".to_owned()));
        assert!(!QUIET.get());
    }
}
