//! Each mistake in the use of the macros, and the one message that it gives.
//! `TRYBUILD=overwrite cargo test -p tune-macros --test ui` accepts new ones.

use std::path::Path;

/// The cases name configs as a recipe does, relative to their package: that is
/// the one that `trybuild` makes.
fn copy_configs() -> std::io::Result<()> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/ui/configs");
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tests/trybuild/tune-macros/configs");
    std::fs::create_dir_all(&to)?;
    for file in std::fs::read_dir(from)? {
        let file = file?;
        std::fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

#[test]
fn mistakes() -> std::io::Result<()> {
    copy_configs()?;
    let cases = trybuild::TestCases::new();
    cases.compile_fail("../tests/ui/*.rs");
    Ok(())
}
