//! Tensor data in files beside the model, mapped into memory.
//!
//! A location comes from the model, so it may only name a regular file inside the model's own folder. The files must not
//! be changed while the model is open: a mapped file that shrinks ends the process.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use memmap2::Mmap;
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::TensorProto;

/// The mapped files of one model by location.
pub(crate) struct ExternalFiles {
    folder: PathBuf,
    maps: BTreeMap<String, Mmap>,
}

/// Where an external tensor lies.
struct Place<'a> {
    location: &'a str,
    offset: u64,
    length: Option<u64>,
}

impl ExternalFiles {
    /// No files yet, of a model in `folder`.
    pub(crate) fn new(folder: &Path) -> Self {
        ExternalFiles { folder: folder.to_owned(), maps: BTreeMap::new() }
    }

    /// Maps the file of `tensor`, unless it is mapped already.
    ///
    /// # Errors
    /// `E0110` when the location leaves the model's folder, `E0111` when the file cannot be read.
    pub(crate) fn open(&mut self, tensor: &TensorProto) -> Result<()> {
        let place = place(tensor)?;
        if self.maps.contains_key(place.location) {
            return Ok(());
        }
        let path = inside(&self.folder, place.location)?;
        self.maps.insert(place.location.to_owned(), map_file(&path)?);
        Ok(())
    }

    /// The `size` bytes of `tensor`.
    ///
    /// # Errors
    /// `E0111` when the file is not mapped, `E0112` when offset or length do not fit the file or the shape.
    pub(crate) fn bytes(&self, tensor: &TensorProto, size: usize) -> Result<&[u8]> {
        let place = place(tensor)?;
        let map = self.maps.get(place.location).ok_or_else(|| {
            Diagnostic::input("E0111", format!("the external data file '{}' is not open", place.location))
                .note("keep the data file in the folder of the model")
        })?;
        if let Some(length) = place.length.filter(|length| *length != size as u64) {
            return Err(Diagnostic::input(
                "E0112",
                format!("external data of {length} bytes, but its shape and type take {size} bytes"),
            )
            .note(format!("tensor '{}' in '{}'", tensor.name, place.location)));
        }
        usize::try_from(place.offset).ok().and_then(|start| map.get(start..start.checked_add(size)?)).ok_or_else(|| {
            Diagnostic::input(
                "E0112",
                format!(
                    "external data at {} of {size} bytes, but '{}' has {} bytes",
                    place.offset,
                    place.location,
                    map.len()
                ),
            )
            .note(format!("tensor '{}': the data file belongs to another model or is cut short", tensor.name))
        })
    }
}

/// Maps the regular file at `path`.
///
/// # Errors
/// `E0111` when there is no such file, it is not a regular one, or it cannot be mapped.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let fail = |why: String| Diagnostic::input("E0111", format!("cannot read '{}': {why}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?;
    if !metadata.is_file() {
        return Err(fail("it is not a regular file".into()));
    }
    let file = File::open(path).map_err(|e| fail(e.to_string()))?;
    // SAFETY: the mapping is read-only and private to this process. Nothing here writes to it; the module's
    // documentation forbids others to change the file meanwhile, as for every mapped file.
    unsafe { Mmap::map(&file) }.map_err(|e| fail(e.to_string()))
}

/// The file at `location`, which must lie inside `folder` after all links are followed.
fn inside(folder: &Path, location: &str) -> Result<PathBuf> {
    let refuse = |why: &str| {
        Diagnostic::input("E0110", format!("external data at '{}': {why}", location.escape_debug()))
            .note("a location must be a relative path without '..' to a file in the folder of the model")
    };
    let relative = Path::new(location);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if location.is_empty() || location.contains('\0') || !plain {
        return Err(refuse("not a path inside the folder of the model"));
    }
    let missing = |path: &Path, e: std::io::Error| {
        Diagnostic::input("E0111", format!("cannot read the external data file '{}': {e}", path.display()))
            .note("keep the data file in the folder of the model")
    };
    let folder = folder.canonicalize().map_err(|e| missing(folder, e))?;
    let joined = folder.join(relative);
    let path = joined.canonicalize().map_err(|e| missing(&joined, e))?;
    if !path.starts_with(&folder) {
        return Err(refuse("a link leads out of the folder of the model"));
    }
    Ok(path)
}

/// The entries of `external_data`.
fn place(tensor: &TensorProto) -> Result<Place<'_>> {
    let bad = |what: String| {
        Diagnostic::input("E0112", format!("external data of tensor '{}': {what}", tensor.name))
            .note("expected 'location', and optionally 'offset' and 'length' as decimal numbers")
    };
    let number = |key: &str, text: &str| {
        text.parse::<u64>().map_err(|_| bad(format!("{key} '{}' is no number", text.escape_debug())))
    };
    let mut place = Place { location: "", offset: 0, length: None };
    for entry in &tensor.external_data {
        match entry.key.as_str() {
            "location" => place.location = &entry.value,
            "offset" => place.offset = number("offset", &entry.value)?,
            "length" => place.length = Some(number("length", &entry.value)?),
            _ => {}
        }
    }
    if place.location.is_empty() {
        return Err(bad("no location".into()));
    }
    Ok(place)
}
