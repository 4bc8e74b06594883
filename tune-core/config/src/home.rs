//! `~` and `~user` at the beginning of a path, as a shell expands them.

use std::borrow::Cow;

/// Why a path with a `~` leads nowhere, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Homeless {
    pub(crate) message: String,
    pub(crate) help: String,
}

/// `path` with the home folder in the place of its `~`. `./~` and what has its `~` elsewhere stay.
pub(crate) fn expand(path: &str) -> Result<Cow<'_, str>, Homeless> {
    expand_with(path, own, of_user)
}

fn expand_with<'p>(
    path: &'p str,
    own: impl Fn() -> Result<String, &'static str>,
    of_user: impl Fn(&str) -> Option<String>,
) -> Result<Cow<'p, str>, Homeless> {
    let Some(behind) = path.strip_prefix('~') else { return Ok(path.into()) };
    let (user, rest) = behind.split_at(behind.find('/').unwrap_or(behind.len()));
    let literally = |instead: &str| format!("{instead}, or write `./{path}` for what is called so itself");
    let home = match user {
        "" => own().map_err(|why| Homeless {
            message: format!("`{path}` leads to no home folder: {why}"),
            help: literally("set HOME or write the whole path"),
        })?,
        user => of_user(user).ok_or_else(|| Homeless {
            message: format!("`{path}` leads to no home folder: there is no user `{user}`"),
            help: literally("write the whole path"),
        })?,
    };
    let whole = format!("{}{rest}", home.trim_end_matches('/'));
    Ok(if whole.is_empty() { "/".into() } else { whole.into() })
}

/// The home folder of who runs this, as `HOME` says.
#[cfg(unix)]
fn own() -> Result<String, &'static str> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).ok_or("HOME is not set")?;
    let home = home.into_string().map_err(|_| "HOME is no text (UTF-8)")?;
    if home.starts_with('/') { Ok(home) } else { Err("HOME is no absolute path") }
}

#[cfg(not(unix))]
fn own() -> Result<String, &'static str> {
    let home = std::env::home_dir().ok_or("nothing says where it is")?;
    home.into_os_string().into_string().map_err(|_| "its path is no text (UTF-8)")
}

#[cfg(unix)]
fn of_user(name: &str) -> Option<String> {
    let user = nix::unistd::User::from_name(name).ok()??;
    user.dir.into_os_string().into_string().ok().filter(|home| home.starts_with('/'))
}

#[cfg(not(unix))]
fn of_user(_: &str) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(path: &str, home: Result<&str, &'static str>) -> Result<String, String> {
        let of_user = |name: &str| (name == "ann").then(|| "/users/ann".to_owned());
        expand_with(path, || home.map(str::to_owned), of_user).map(Cow::into_owned).map_err(|homeless| homeless.message)
    }

    #[test]
    fn a_tilde_at_the_beginning_is_a_home_folder() {
        for (path, expected) in [
            ("~", "/users/me"),
            ("~/", "/users/me/"),
            ("~/a b/~c", "/users/me/a b/~c"),
            ("~ann", "/users/ann"),
            ("~ann/x", "/users/ann/x"),
            ("./~", "./~"),
            ("./~ann/x", "./~ann/x"),
            ("a/~/b", "a/~/b"),
            ("a~", "a~"),
            ("hf://org/~name", "hf://org/~name"),
            ("", ""),
        ] {
            assert_eq!(expanded(path, Ok("/users/me")).as_deref(), Ok(expected));
        }
        assert_eq!(expanded("~/a", Ok("/users/me/")).as_deref(), Ok("/users/me/a"));
        assert_eq!(expanded("~/a", Ok("/")).as_deref(), Ok("/a"));
        assert_eq!(expanded("~", Ok("/")).as_deref(), Ok("/"));
    }

    #[test]
    fn nobody_has_no_home() {
        let nobody = |path| expanded(path, Ok("/users/me")).unwrap_err();
        assert_eq!(nobody("~bob/x"), "`~bob/x` leads to no home folder: there is no user `bob`");
        assert_eq!(nobody("~#a#"), "`~#a#` leads to no home folder: there is no user `#a#`");
        assert_eq!(
            expanded("~/x", Err("HOME is not set")),
            Err("`~/x` leads to no home folder: HOME is not set".into())
        );
        assert_eq!(expanded("~ann", Err("HOME is not set")).as_deref(), Ok("/users/ann"));
    }

    #[cfg(unix)]
    #[test]
    fn users_are_those_of_the_system() {
        assert!(of_user("root").is_some_and(|home| home.starts_with('/')));
        assert_eq!(of_user("no-such-user"), None);
        assert_eq!(of_user("a\0b"), None);
    }
}
