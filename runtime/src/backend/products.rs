//! Where products with large weights run: on this machine's processor, or on a graphics processor that keeps the weights.
//!
//! The processor is the default and says what is right: a device gives the same bits or an error that ends the step. Which
//! of the two a party takes shows in nothing that it sends. Weights are placed in the order in which a step first takes
//! them, and those for which a device has no room stay with the processor.

use std::sync::Arc;

use ombra_ir::dim::Dim;
use ombra_ir::module::{Module, Node};
use ombra_ir::op::Op;
use ombra_ir::{Diagnostic, Result};
use serde::{Deserialize, Serialize};

use super::device::{self, Device};

/// Weights of at most this many elements are not worth placing; every party stores them.
pub const SMALL: usize = 1 << 14;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// A graphics processor where one gives right answers sooner than the processor, else the processor.
    Auto,
    /// The processor.
    #[default]
    Cpu,
    /// A graphics processor, or an error.
    Gpu,
}

impl Choice {
    /// As the option `--backend` has it.
    pub fn name(self) -> &'static str {
        match self {
            Choice::Auto => "auto",
            Choice::Cpu => "cpu",
            Choice::Gpu => "gpu",
        }
    }
}

/// Where products ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// On the processor.
    #[default]
    Cpu,
    /// On a graphics processor, those with large weights.
    Gpu,
}

impl Backend {
    /// As reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Gpu => "gpu",
        }
    }
}

/// Why there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It was asked for.
    #[default]
    Asked,
    /// The program was built without the feature `gpu`.
    NotBuilt,
    /// There is no graphics processor that may be used, or its answers to known products are not right.
    NoDevice,
    /// No weight of the plan is worth placing.
    SmallWeights,
    /// The graphics processor has no room for the plan's largest weight.
    NoRoom,
    /// The graphics processor was slower in a trial.
    Slower,
    /// The graphics processor was faster in a trial.
    Faster,
    /// The graphics processor failed in an earlier session.
    Failed,
}

impl Why {
    fn text(self) -> &'static str {
        match self {
            Why::Asked => "as asked",
            Why::NotBuilt => "this program was built without the feature gpu",
            Why::NoDevice => "there is no graphics processor that can be used",
            Why::SmallWeights => "the plan has no large weights",
            Why::NoRoom => "the graphics processor has no room for the largest weight",
            Why::Slower => "the graphics processor was slower in a trial",
            Why::Faster => "the graphics processor was faster in a trial",
            Why::Failed => "the graphics processor failed in an earlier session",
        }
    }
}

/// Where the products of one party ran, and why there: what it tells the others, and reports say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ran {
    /// Where.
    pub backend: Backend,
    /// Why there.
    pub why: Why,
    /// Bytes of weights that lie on a graphics processor.
    pub placed_bytes: u64,
    /// Bytes of weights that stayed with the processor because there was no room.
    pub left_bytes: u64,
}

impl Ran {
    /// In words, without the party.
    pub fn text(&self) -> String {
        let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
        let place = match self.backend {
            Backend::Cpu => "products on the processor".to_owned(),
            Backend::Gpu => {
                format!(
                    "products with large weights on the graphics processor, {} MiB of them",
                    mebibytes(self.placed_bytes)
                )
            }
        };
        let left = match self.left_bytes {
            0 => String::new(),
            bytes => format!(", {} MiB for which it has no room on the processor", mebibytes(bytes)),
        };
        format!("{place}{left}: {}", self.why.text())
    }
}

/// How products are made at one party. Clones are the same.
#[derive(Clone)]
pub struct Products {
    threads: usize,
    why: Why,
    /// The device by name, or what is known of why there is none.
    detail: Option<String>,
    device: Option<Arc<Device>>,
}

/// Where the parts of a weight lie on a device. They are cleared there with the last clone.
#[derive(Clone, Default)]
pub struct Places(Arc<device::Places>);

/// Why there is no device.
pub struct Absent {
    /// In a word.
    pub why: Why,
    /// In words.
    pub text: String,
    /// What to do.
    pub help: &'static str,
}

/// A product of a party's words with a part of a weight.
pub struct Operands<'a> {
    /// Rows and columns of the weight.
    pub sizes: [usize; 2],
    /// The words, whose last axis meets the weight's rows, or its columns where `trans_b` says that its axes are exchanged.
    pub x: &'a [u64],
    /// Whether the weight's axes are exchanged.
    pub trans_b: bool,
    /// The length of the result.
    pub len: usize,
}

impl Products {
    /// On `threads` threads of the processor.
    pub fn cpu(threads: usize) -> Products {
        Products { threads, why: Why::Asked, detail: None, device: None }
    }

    /// On the processor, since `why`.
    fn instead(threads: usize, why: Why, detail: String) -> Products {
        Products { why, detail: Some(detail), ..Products::cpu(threads) }
    }

    /// On a device, since `why`; `threads` of the processor do what it does not.
    fn on(device: Device, threads: usize, why: Why, detail: String) -> Products {
        Products { threads, why, detail: Some(detail), device: Some(Arc::new(device)) }
    }

    /// On a device that is open, as asked.
    #[cfg(feature = "gpu")]
    pub fn on_gpu(gpu: Arc<ombra_gpu::Gpu>, threads: usize) -> Products {
        let device = Device::of(gpu);
        let name = device.name().to_owned();
        Products::on(device, threads, Why::Asked, name)
    }

    /// As `choice` says, for a program; `threads` of the processor do what no device does.
    ///
    /// # Errors
    /// `E1012` where a graphics processor is asked for and none can be used.
    pub fn choose(choice: Choice, threads: usize, module: &Module) -> Result<Products> {
        if choice == Choice::Cpu {
            return Ok(Products::cpu(threads));
        }
        let largest = largest_product(module);
        if let (Choice::Auto, None) = (choice, largest) {
            return Ok(Products::instead(threads, Why::SmallWeights, Why::SmallWeights.text().to_owned()));
        }
        let device = match Device::open() {
            Ok(device) => device,
            Err(absent) if choice == Choice::Auto => return Ok(Products::instead(threads, absent.why, absent.text)),
            Err(absent) => {
                return Err(Diagnostic::unsupported("E1012", format!("no backend gpu: {}", absent.text))
                    .note("expected  --backend cpu or auto")
                    .note(format!("help      {}", absent.help)));
            }
        };
        let name = device.name().to_owned();
        let Some(sizes) = largest.filter(|_| choice == Choice::Auto) else {
            return Ok(Products::on(device, threads, Why::Asked, name));
        };
        Ok(match device.trial(sizes, threads) {
            Err(error) => Products::instead(threads, Why::NoDevice, error.message),
            Ok(None) => Products::instead(threads, Why::NoRoom, name),
            Ok(Some((true, text))) => Products::on(device, threads, Why::Faster, format!("{name}, {text}")),
            Ok(Some((false, text))) => Products::instead(threads, Why::Slower, format!("{name}, {text}")),
        })
    }

    /// The same for another session: on the processor where the device has failed in one before.
    pub fn for_session(&self) -> Products {
        match self.device.as_ref().and_then(|device| device.failure()) {
            Some(what) => Products::instead(self.threads, Why::Failed, what),
            None => self.clone(),
        }
    }

    /// Threads of a product on the processor.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Where products run and have run so far, and why there.
    pub fn ran(&self) -> Ran {
        let why = self.why;
        match &self.device {
            None => Ran { why, ..Ran::default() },
            Some(device) => {
                Ran { backend: Backend::Gpu, why, placed_bytes: device.placed_bytes(), left_bytes: device.left_bytes() }
            }
        }
    }

    /// What a party says of its own choice, where there was one: the device by name, or why there is none.
    pub fn note(&self) -> Option<String> {
        let place = if self.device.is_some() { "graphics processor" } else { "processor" };
        Some(format!("products with large weights run on the {place}: {}", self.detail.as_ref()?))
    }

    /// The product with part `part` of a weight on the device, where the part is or can be placed: then `make` sets words to
    /// its elements from one on, in order. `None` where the processor is to do it.
    ///
    /// # Errors
    /// `E0819` where the device fails; those of `make`.
    pub fn on_placed(
        &self,
        places: &Places,
        part: usize,
        operands: &Operands<'_>,
        make: &mut dyn FnMut(usize, &mut [u64]) -> Result<()>,
    ) -> Result<Option<Vec<u64>>> {
        match &self.device {
            None => Ok(None),
            Some(device) => device.product(&places.0, part, operands, make),
        }
    }
}

/// Rows, inner size and columns of the product with the largest weight that is worth placing, at the largest sizes of the
/// plan.
fn largest_product(module: &Module) -> Option<[usize; 3]> {
    let size = |dim: &Dim| usize::try_from(module.dims.upper(dim)?).ok();
    let of = |node: &Node| {
        let (Op::MatMul { trans_b }, [x, weight]) = (&node.op, node.args.as_slice()) else { return None };
        let weight = module.node(*weight);
        let ([rows, columns], Op::Weight { .. } | Op::PublicWeight { .. }) = (&*weight.ty.shape, &weight.op) else {
            return None;
        };
        let (k, n) = if *trans_b { (size(columns)?, size(rows)?) } else { (size(rows)?, size(columns)?) };
        let (_, before) = module.ty(*x).shape.split_last()?;
        let m = before.iter().try_fold(1, |m: usize, dim| Some(m.saturating_mul(size(dim)?)))?;
        (k.saturating_mul(n) > SMALL).then_some([m, k, n])
    };
    module.ops.iter().filter_map(of).max_by_key(|[_, k, n]| k.saturating_mul(*n))
}
