//! Machine profiles from files.

use ombra_ir::profile::Profile;
use ombra_ir::{Diagnostic, Result, files};
use std::path::Path;

/// Largest file that is read as a profile.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the profile that `ombra-run measure` wrote to `path`.
///
/// # Errors
/// `E0566` for a file that is none; those of [`Profile::check`].
pub fn read(path: &Path) -> Result<Profile> {
    let wrong = |what: String| {
        Diagnostic::input("E0566", format!("{} is no machine profile: {what}", path.display()))
            .note("expected the JSON that `ombra-run measure` writes")
    };
    let text = files::read_text(path, MAX_BYTES).map_err(|e| wrong(e.to_string()))?;
    let profile: Profile = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    profile.check()?;
    Ok(profile)
}
