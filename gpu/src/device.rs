//! Which device is taken, and what is kept of it: programs, the first error, and how much of its memory is in use.

use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wgpu::{
    Adapter, Backends, Device, DeviceType, Features, Instance, InstanceDescriptor, InstanceFlags, Limits, Queue,
};

use crate::product::{Programs, Scratch};
use crate::text::{INVOCATIONS, WORKGROUP_BYTES};
use crate::{Error, Form, Result, trial};

/// Largest binding that is used, in bytes: its elements have indices far below 2^32.
const MOST_BINDING: u64 = 1 << 31;
/// Smallest binding with which a device is of use, in bytes.
const LEAST_BINDING: u64 = 1 << 20;
/// Percent of the device's memory above which nothing more is placed, where the driver tells.
const FULL_PERCENT: u8 = 80;
/// How long a device may take for one submission: far longer than any takes that works.
const PATIENCE: Duration = Duration::from_secs(300);

/// What may be used.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether a driver that computes on the processor will do: for tests.
    pub software: bool,
    /// Bytes of right operands that may be placed, where that is to be less than the device has room for.
    pub memory: Option<u64>,
    /// The integers to compute with; by default the device's own where it has them.
    pub form: Option<Form>,
    /// Bytes of one buffer at most, where that is to be less than the device allows: for tests.
    pub binding: Option<u64>,
}

impl Options {
    /// As the environment says: `OMBRA_GPU_SOFTWARE` is `1` where software drivers will do, `OMBRA_GPU_MEMORY` gives the
    /// memory in MiB.
    ///
    /// # Errors
    /// [`Error::Unfit`] for a memory that is no number.
    pub fn from_environment() -> Result<Options> {
        let software = env::var("OMBRA_GPU_SOFTWARE").is_ok_and(|value| value == "1");
        let memory = match env::var("OMBRA_GPU_MEMORY") {
            Err(_) => None,
            Ok(text) => match text.parse::<u64>() {
                Ok(mebibytes) => Some(mebibytes.saturating_mul(1 << 20)),
                Err(_) => return Err(Error::Unfit(format!("OMBRA_GPU_MEMORY is `{text}`, expected a number of MiB"))),
            },
        };
        Ok(Options { software, memory, ..Options::default() })
    }
}

/// A device that is in use. All threads share it; products on it run one after another.
pub struct Gpu {
    pub(crate) device: Device,
    pub(crate) queue: Queue,
    pub(crate) programs: Programs,
    /// Bytes of one buffer at most.
    pub(crate) binding: u64,
    /// Most workgroups along a dimension.
    pub(crate) groups: u32,
    scratch: Mutex<Option<Scratch>>,
    state: Arc<State>,
    memory: Option<u64>,
    placed: AtomicU64,
    form: Form,
    name: String,
}

/// The first error of a device, if there was one.
#[derive(Default)]
struct State(Mutex<Option<String>>);

impl State {
    fn fail(&self, what: String) {
        lock(&self.0).get_or_insert(what);
    }

    fn check(&self) -> Result<()> {
        lock(&self.0).clone().map_or(Ok(()), |what| Err(Error::Failed(what)))
    }
}

/// The lock, also where a thread panicked with it: what it guards is not used again then.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How good a kind of adapter is, the best first; none for software that was not asked for.
fn rank(kind: DeviceType, software: bool) -> Option<u8> {
    match kind {
        DeviceType::DiscreteGpu => Some(0),
        DeviceType::IntegratedGpu => Some(1),
        DeviceType::VirtualGpu => Some(2),
        DeviceType::Other => Some(3),
        DeviceType::Cpu => software.then_some(4),
    }
}

/// Opens the best adapter of this machine whose answers to known products are right.
///
/// # Errors
/// [`Error::None`] where there is none; otherwise what is wrong with the first that might have been used.
pub fn open(options: &Options) -> Result<Arc<Gpu>> {
    let opened = panic::catch_unwind(AssertUnwindSafe(|| {
        let gpu = Arc::new(open_best(options)?);
        trial::check_known(&gpu)?;
        Ok(gpu)
    }));
    opened.unwrap_or_else(|_| Err(Error::Unfit("its driver failed while it was opened".to_owned())))
}

fn open_best(options: &Options) -> Result<Gpu> {
    let mut wanted = InstanceDescriptor::new_without_display_handle();
    wanted.backends = Backends::VULKAN | Backends::METAL | Backends::DX12;
    wanted.flags = InstanceFlags::empty();
    wanted.memory_budget_thresholds.for_resource_creation = Some(FULL_PERCENT);
    let instance = Instance::new(wanted);
    let mut found = Vec::new();
    let mut usable: Vec<(u8, Adapter)> = Vec::new();
    for adapter in pollster::block_on(instance.enumerate_adapters(Backends::all())) {
        let info = adapter.get_info();
        match rank(info.device_type, options.software).map(|rank| (rank, unfit(&adapter.limits()))) {
            None => found.push(format!("{} computes in software (OMBRA_GPU_SOFTWARE=1 allows that)", info.name)),
            Some((_, Some(why))) => found.push(format!("{} {why}", info.name)),
            Some((rank, None)) => usable.push((rank, adapter)),
        }
    }
    // Stable: among equals the first that the system names.
    usable.sort_by_key(|(rank, _)| *rank);
    match usable.into_iter().next() {
        Some((_, adapter)) => open_adapter(&adapter, options),
        None => Err(Error::None(found)),
    }
}

/// What an adapter lacks.
fn unfit(limits: &Limits) -> Option<String> {
    if limits.max_compute_workgroup_storage_size < WORKGROUP_BYTES {
        return Some(format!("has less than {WORKGROUP_BYTES} bytes of workgroup memory"));
    }
    if limits.max_compute_invocations_per_workgroup < INVOCATIONS || limits.max_compute_workgroup_size_x < INVOCATIONS {
        return Some(format!("has workgroups of fewer than {INVOCATIONS} invocations"));
    }
    (binding(limits) < LEAST_BINDING).then(|| format!("binds buffers of less than {LEAST_BINDING} bytes only"))
}

/// Bytes of one buffer at most.
fn binding(limits: &Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(MOST_BINDING) / 256 * 256
}

fn open_adapter(adapter: &Adapter, options: &Options) -> Result<Gpu> {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let has_wide = adapter.features().contains(Features::SHADER_INT64);
    let form = options.form.unwrap_or(if has_wide { Form::Wide } else { Form::Limbs });
    if form == Form::Wide && !has_wide {
        return Err(Error::Unfit(format!("{} has no integers of 64 bits", info.name)));
    }
    let required_features = if form == Form::Wide { Features::SHADER_INT64 } else { Features::empty() };
    let required = wgpu::DeviceDescriptor { required_features, required_limits: limits.clone(), ..Default::default() };
    let opened = pollster::block_on(adapter.request_device(&required));
    let (device, queue) = opened.map_err(|error| Error::Unfit(format!("{}: {error}", info.name)))?;
    let state = Arc::new(State::default());
    let (lost, failed) = (Arc::clone(&state), Arc::clone(&state));
    device.set_device_lost_callback(move |_, what| lost.fail(format!("it was lost: {what}")));
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| failed.fail(error.to_string())));
    let programs = Programs::new(&device, form);
    state.check()?;
    let binding = options.binding.map_or(u64::MAX, |bytes| bytes / 256 * 256).min(binding(&limits)).max(256);
    Ok(Gpu {
        programs,
        binding,
        groups: limits.max_compute_workgroups_per_dimension,
        scratch: Mutex::new(None),
        state,
        memory: options.memory,
        placed: AtomicU64::new(0),
        form,
        name: format!("{} ({:?}, {})", info.name, info.backend, form.name()),
        device,
        queue,
    })
}

impl Gpu {
    /// The device, its driver's interface and how it computes, in words.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it computes.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The error after which it refuses all work, if there was one.
    pub fn failure(&self) -> Option<String> {
        lock(&self.state.0).clone()
    }

    /// Bytes of right operands that are in its memory now.
    pub fn placed_bytes(&self) -> u64 {
        self.placed.load(Ordering::Relaxed)
    }

    /// Does `work` on the device. Whatever goes wrong in it, a panic of the driver's too, is the device's end.
    pub(crate) fn guarded<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.state.check()?;
        let done = panic::catch_unwind(AssertUnwindSafe(work));
        let done = done.unwrap_or_else(|_| Err(Error::Failed("its driver ended in a fault".to_owned())));
        if let Err(Error::Failed(what)) = &done {
            self.state.fail(what.clone());
        }
        // What the driver said is the cause, whatever followed from it.
        self.state.check()?;
        done
    }

    /// The buffers that all products share, for one of them.
    pub(crate) fn with_scratch<T>(&self, work: impl FnOnce(&mut Scratch) -> Result<T>) -> Result<T> {
        let mut scratch = lock(&self.scratch);
        self.guarded(|| match &mut *scratch {
            Some(scratch) => work(scratch),
            empty => work(empty.insert(Scratch::new(self))),
        })
    }

    /// Waits until everything that was submitted is done.
    pub(crate) fn wait(&self) -> Result<()> {
        let wait = wgpu::PollType::Wait { submission_index: None, timeout: Some(PATIENCE) };
        self.device.poll(wait).map_err(|error| Error::Failed(format!("it did not answer: {error}")))?;
        self.state.check()
    }

    /// Takes room for right operands; whether there is some.
    pub(crate) fn take_room(&self, bytes: u64) -> bool {
        let most = self.memory.unwrap_or(u64::MAX);
        let taken = |placed: u64| placed.checked_add(bytes).filter(|&sum| sum <= most);
        self.placed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    /// Gives it back.
    pub(crate) fn give_room(&self, bytes: u64) {
        self.placed.fetch_sub(bytes, Ordering::Relaxed);
    }
}
