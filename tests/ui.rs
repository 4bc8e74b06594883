//! Each mistake in the use of the macros, and the one message that it gives.
//! `TRYBUILD=overwrite cargo test -p tune-macros --test ui` accepts new ones.

#[test]
fn mistakes() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("../tests/ui/*.rs");
}
