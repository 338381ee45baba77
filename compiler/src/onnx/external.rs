//! Tensor data in files beside the model, mapped into memory.
//!
//! A location comes from the model, so it may only name a regular file inside the model's own folder. The files must not
//! be changed while the model is open: a mapped file that shrinks ends the process.
//!
//! Whoever reads elements says how many, and every [`RESIDENT`] bytes the pages of all files are given back to the
//! kernel: a model is read several times, and would stay in memory whole after the first. A page that is needed again
//! comes from the kernel's cache of the file.
//!
//! A model whose costs alone are wanted may be read without its data files. Only a file that is not there is let pass:
//! one that is there but cannot be read, or has too few bytes, is an error all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{Mmap, UncheckedAdvice};
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::TensorProto;

/// The mapped files of one model by location.
pub(crate) struct ExternalFiles {
    folder: PathBuf,
    maps: BTreeMap<String, Mmap>,
    may_be_absent: bool,
    absent: BTreeSet<String>,
    /// Bytes that were read since pages were given back.
    read: AtomicUsize,
}

/// Bytes that are read before pages are given back.
const RESIDENT: usize = 256 << 20;

/// The code of an error about data that are not there, in a model that was read without them.
pub const ABSENT: &str = "E0113";

/// Where an external tensor lies.
struct Place<'a> {
    location: &'a str,
    offset: u64,
    length: Option<u64>,
}

impl ExternalFiles {
    /// No files yet, of a model in `folder`. Files that are not there are an error, unless they `may_be_absent`.
    pub(crate) fn new(folder: &Path, may_be_absent: bool) -> Self {
        let (maps, absent) = (BTreeMap::new(), BTreeSet::new());
        ExternalFiles { folder: folder.to_owned(), maps, may_be_absent, absent, read: AtomicUsize::new(0) }
    }

    /// Counts bytes that were read, and gives pages back where they are many.
    pub(crate) fn was_read(&self, bytes: usize) {
        if self.read.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) < RESIDENT {
            return;
        }
        self.read.store(0, Ordering::Relaxed);
        for map in self.maps.values() {
            // SAFETY: the mapping is read-only, so that a page that is dropped has nothing but the file's bytes, which the
            // next read of it maps again. Where the advice is refused, the pages stay.
            let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }

    /// Locations of files that are not there.
    pub(crate) fn absent(&self) -> &BTreeSet<String> {
        &self.absent
    }

    /// Whether the file of `tensor` is not there.
    pub(crate) fn lacks(&self, tensor: &TensorProto) -> bool {
        place(tensor).is_ok_and(|place| self.absent.contains(place.location))
    }

    /// Maps the file of `tensor`, unless it is mapped already.
    ///
    /// # Errors
    /// `E0110` when the location leaves the model's folder, `E0111` when the file cannot be read.
    pub(crate) fn open(&mut self, tensor: &TensorProto) -> Result<()> {
        let place = place(tensor)?;
        if self.maps.contains_key(place.location) || self.absent.contains(place.location) {
            return Ok(());
        }
        let Some(path) = inside(&self.folder, place.location, self.may_be_absent)? else {
            self.absent.insert(place.location.to_owned());
            return Ok(());
        };
        self.maps.insert(place.location.to_owned(), map_file(&path)?);
        Ok(())
    }

    /// The `size` bytes of `tensor`.
    ///
    /// # Errors
    /// `E0111` when the file is not mapped, `E0112` when offset or length do not fit the file or the shape, `E0113` when
    /// the model was read without the file.
    pub(crate) fn bytes(&self, tensor: &TensorProto, size: usize) -> Result<&[u8]> {
        let place = place(tensor)?;
        if self.absent.contains(place.location) {
            return Err(Diagnostic::input(ABSENT, format!("the elements of tensor '{}' are needed", tensor.name))
                .note(format!("they are in the external data file '{}', which is not there", place.location))
                .note("put the file into the folder of the model"));
        }
        let map = self.maps.get(place.location).ok_or_else(|| {
            Diagnostic::input("E0111", format!("the external data file '{}' is not open", place.location))
                .note("keep the data file in the folder of the model")
        })?;
        check_length(&place, tensor, size)?;
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

/// Checks that the length that `tensor` declares, if it does, is `size`.
///
/// # Errors
/// `E0112`.
pub(crate) fn check_declared(tensor: &TensorProto, size: usize) -> Result<()> {
    check_length(&place(tensor)?, tensor, size)
}

fn check_length(place: &Place, tensor: &TensorProto, size: usize) -> Result<()> {
    match place.length.filter(|length| *length != size as u64) {
        None => Ok(()),
        Some(length) => Err(Diagnostic::input(
            "E0112",
            format!("external data of {length} bytes, but its shape and type take {size} bytes"),
        )
        .note(format!("tensor '{}' in '{}'", tensor.name, place.location))),
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

/// The file at `location`, which must lie inside `folder` after all links are followed; nothing when it is not there and
/// `may_be_absent`.
fn inside(folder: &Path, location: &str, may_be_absent: bool) -> Result<Option<PathBuf>> {
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
    let path = match joined.canonicalize() {
        Ok(path) => path,
        Err(e) if may_be_absent && e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(missing(&joined, e)),
    };
    if !path.starts_with(&folder) {
        return Err(refuse("a link leads out of the folder of the model"));
    }
    Ok(Some(path))
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
