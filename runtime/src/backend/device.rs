//! Products with weights that lie in the memory of a graphics processor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ombra_gpu::{Error, Gpu, Options, Placed, compare, open};
use ombra_ir::{Diagnostic, Result};

use super::products::{Absent, Operands, Why};
use crate::wiped::Zeroizing;

/// Elements of a weight that are made and sent at once.
const BLOCK: usize = 1 << 20;

/// A device with what is known of its use.
pub struct Device {
    gpu: Arc<Gpu>,
    left: AtomicU64,
}

/// Where the parts of one weight are.
pub type Places = [Mutex<Place>; 3];

/// Where one part is.
#[derive(Default)]
pub enum Place {
    /// Nobody has asked for it.
    #[default]
    Unknown,
    /// On the device.
    There(Arc<Placed>),
    /// There was no room for it.
    Nowhere,
}

impl Device {
    /// The device of this machine, if there is one that gives right answers.
    ///
    /// # Errors
    /// What there is, and why it cannot be used.
    pub fn open() -> std::result::Result<Device, Absent> {
        let opened = Options::from_environment().and_then(|options| open(&options));
        opened.map(Device::of).map_err(|error| Absent {
            why: Why::NoDevice,
            text: error.to_string(),
            help: "install the driver of a graphics processor for Vulkan, Metal or DirectX 12",
        })
    }

    /// A device that is open.
    pub fn of(gpu: Arc<Gpu>) -> Device {
        Device { gpu, left: AtomicU64::new(0) }
    }

    /// The device in words.
    pub fn name(&self) -> &str {
        self.gpu.name()
    }

    /// Whether products of such sizes take less time than on `threads` threads of the processor, and both times in words;
    /// `None` without room.
    ///
    /// # Errors
    /// `E0819`.
    pub fn trial(&self, sizes: [usize; 3], threads: usize) -> Result<Option<(bool, String)>> {
        let Some(trial) = compare(&self.gpu, sizes, threads).map_err(failed)? else { return Ok(None) };
        let [m, k, n] = trial.sizes;
        let [device, processor] = [trial.device, trial.processor].map(|seconds| seconds * 1e3);
        let text = format!("{device:.2} ms beside {processor:.2} ms of the processor for {m} x {k} times {k} x {n}");
        Ok(Some((trial.device < trial.processor, text)))
    }

    /// The error that it ended with, if it did.
    pub fn failure(&self) -> Option<String> {
        self.gpu.failure()
    }

    /// Bytes of weights that lie on the device.
    pub fn placed_bytes(&self) -> u64 {
        self.gpu.placed_bytes()
    }

    /// Bytes of weights for which there was no room.
    pub fn left_bytes(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// The product with a part of a weight, which `make` makes where it is not placed yet.
    ///
    /// # Errors
    /// `E0819`, `E0804` for a part that there is not, and those of `make`.
    pub fn product(
        &self,
        places: &Places,
        part: usize,
        operands: &Operands<'_>,
        make: &mut dyn FnMut(usize, &mut [u64]) -> Result<()>,
    ) -> Result<Option<Vec<u64>>> {
        let place = places.get(part).ok_or_else(|| Diagnostic::internal("E0804", "a weight has no such part"))?;
        let Operands { sizes: [rows, columns], x, trans_b, len } = *operands;
        let placed = {
            // Sessions that want the same weight wait until it is there.
            let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
            if let Place::Unknown = *place {
                *place = self.place(rows, columns, make)?;
            }
            match &*place {
                Place::There(placed) => Arc::clone(placed),
                Place::Unknown | Place::Nowhere => return Ok(None),
            }
        };
        let mut out = vec![0; len];
        placed.add_product(x, trans_b, &mut out).map_err(failed)?;
        Ok(Some(out))
    }

    fn place(
        &self,
        rows: usize,
        columns: usize,
        make: &mut dyn FnMut(usize, &mut [u64]) -> Result<()>,
    ) -> Result<Place> {
        let n = rows.saturating_mul(columns);
        let Some(mut placing) = self.gpu.place(rows, columns).map_err(failed)? else {
            self.left.fetch_add((n as u64).saturating_mul(8), Ordering::Relaxed);
            return Ok(Place::Nowhere);
        };
        let mut made = Zeroizing::new(vec![0; BLOCK.min(n)]);
        for start in (0..n).step_by(BLOCK) {
            let block = &mut made[..BLOCK.min(n - start)];
            make(start, block)?;
            placing.put(block).map_err(failed)?;
        }
        Ok(Place::There(Arc::new(placing.end().map_err(failed)?)))
    }
}

fn failed(error: Error) -> Diagnostic {
    Diagnostic::internal("E0819", error.to_string()).note("help      run this party again, or with --backend cpu")
}
