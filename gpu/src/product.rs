//! Products of rows that come from this machine with a matrix that lies on the device.
//!
//! Rows go in chunks, so that buffers stay within what a device binds and a submission within what it takes in a second or
//! two. Of a chunk of few bytes the operand's way to the device, the product, the result's way back and the clearing of all
//! that lay between are one submission and one wait. What staged it is overwritten after that: on this side by zeros
//! that are written, on the device by zeros that it writes.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindGroupLayout, BindGroupLayoutDescriptor, BindGroupLayoutEntry,
    BindingResource, BindingType, Buffer, BufferAsyncError, BufferBinding, BufferBindingType, BufferDescriptor,
    BufferUsages, CommandEncoder, CommandEncoderDescriptor, ComputePassDescriptor, ComputePipeline,
    ComputePipelineDescriptor, Device, MapMode, PipelineLayoutDescriptor, ShaderModuleDescriptor, ShaderSource,
    ShaderStages,
};
use zeroize::Zeroize;

use crate::device::Gpu;
use crate::place::{Slab, bytes_of};
use crate::text::{self, FEW, TILE, few_columns};
use crate::{Error, Form, Result};

/// Bytes that are staged at once, in either direction.
const STAGE: u64 = 16 << 20;
/// Bytes of a chunk of an operand or a result.
const CHUNK: u64 = 64 << 20;
/// Multiplications of a submission: half a second at 64 of them a nanosecond, and at most a few seconds where it is slow.
const SUBMISSION: u64 = 1 << 35;
/// Up to this many rows, the right operand is read without tiles.
const FEW_ROWS: usize = 16;
/// Most slabs of a matrix.
pub const MOST_SLABS: usize = 256;
/// Bytes from one slab's sizes to the next: what every device can bind at.
const SIZES: u64 = 256;
/// Bytes of the sizes of all slabs, which are staged before elements.
const TABLE: u64 = SIZES * MOST_SLABS as u64;
/// Elements that are turned into bytes at once.
const PIECE: usize = 512;

/// What the device runs.
pub struct Programs {
    layout: BindGroupLayout,
    /// For many rows, and for few; each for a right operand by rows, and with its axes exchanged.
    pipelines: [[ComputePipeline; 2]; 2],
}

impl Programs {
    /// The programs in a form of integers.
    pub fn new(device: &Device, form: Form) -> Programs {
        let buffer = |binding: u32, ty: BufferBindingType, moves: bool| BindGroupLayoutEntry {
            binding,
            visibility: ShaderStages::COMPUTE,
            ty: BindingType::Buffer {
                ty,
                has_dynamic_offset: moves,
                min_binding_size: moves.then_some(NonZeroU64::new(36)).flatten(),
            },
            count: None,
        };
        let layout = device.create_bind_group_layout(&BindGroupLayoutDescriptor {
            label: None,
            entries: &[
                buffer(0, BufferBindingType::Storage { read_only: true }, false),
                buffer(1, BufferBindingType::Storage { read_only: true }, false),
                buffer(2, BufferBindingType::Storage { read_only: false }, false),
                buffer(3, BufferBindingType::Uniform, true),
            ],
        });
        let of = PipelineLayoutDescriptor { bind_group_layouts: &[Some(&layout)], ..Default::default() };
        let of = device.create_pipeline_layout(&of);
        let pipeline = |text: String| {
            let source = ShaderSource::Wgsl(text.into());
            let module = device.create_shader_module(ShaderModuleDescriptor { label: None, source });
            device.create_compute_pipeline(&ComputePipelineDescriptor {
                label: None,
                layout: Some(&of),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // All of it is written before it is read.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: None,
            })
        };
        let pipelines = [
            [false, true].map(|trans_b| pipeline(text::tiles(form, trans_b))),
            [false, true].map(|trans_b| pipeline(text::few(form, trans_b))),
        ];
        Programs { layout, pipelines }
    }
}

/// Buffers that all products share, each empty of secrets between them. They are made before weights fill the device's
/// memory, and nothing else is made for a product unless a row of it is longer than a chunk.
pub struct Scratch {
    /// On the way to the device, the sizes of slabs before elements; mapped between uses.
    up: Buffer,
    /// On the way back.
    down: Buffer,
    /// Sizes of every slab's product.
    sizes: Buffer,
    x: Buffer,
    c: Buffer,
}

/// What a buffer is used for.
fn buffer(device: &Device, size: u64, usage: BufferUsages) -> Buffer {
    let mapped_at_creation = usage.contains(BufferUsages::MAP_WRITE);
    device.create_buffer(&BufferDescriptor { label: None, size, usage, mapped_at_creation })
}

const OPERAND: BufferUsages = BufferUsages::STORAGE.union(BufferUsages::COPY_DST);
const RESULT: BufferUsages = OPERAND.union(BufferUsages::COPY_SRC);

impl Scratch {
    /// Empty buffers.
    pub fn new(gpu: &Gpu) -> Scratch {
        let device = &gpu.device;
        let stage = STAGE.min(gpu.binding);
        Scratch {
            up: buffer(device, TABLE + stage, BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC),
            down: buffer(device, stage, BufferUsages::MAP_READ | BufferUsages::COPY_DST),
            sizes: buffer(device, TABLE, BufferUsages::UNIFORM | BufferUsages::COPY_DST),
            x: buffer(device, CHUNK.min(gpu.binding), OPERAND),
            c: buffer(device, CHUNK.min(gpu.binding), RESULT),
        }
    }

    /// Elements that are staged at once.
    fn staged(&self) -> usize {
        ((self.up.size() - TABLE) / 8) as usize
    }

    /// Writes elements where they are staged, and has them copied to element `at` of a buffer.
    fn stage(&self, encoder: &mut CommandEncoder, words: &[u64], to: &Buffer, at: usize) -> Result<()> {
        let mut view = self.up.slice(TABLE..TABLE + bytes_of(words.len())).get_mapped_range_mut().map_err(failed)?;
        let mut bytes = [0u8; 8 * PIECE];
        for (i, piece) in words.chunks(PIECE).enumerate() {
            let bytes = &mut bytes[..8 * piece.len()];
            for (bytes, word) in bytes.chunks_exact_mut(8).zip(piece) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            let start = 8 * PIECE * i;
            view.slice(start..start + bytes.len()).copy_from_slice(bytes);
        }
        bytes.zeroize();
        drop(view);
        encoder.copy_buffer_to_buffer(&self.up, TABLE, to, bytes_of(at), bytes_of(words.len()));
        Ok(())
    }

    /// Maps the buffer of the way to the device again, whose first `staged` elements are overwritten once all is done.
    fn remap(&self) -> Receiver<std::result::Result<(), BufferAsyncError>> {
        mapped(&self.up, self.up.size(), MapMode::Write)
    }

    /// Overwrites what was staged.
    fn wipe(&self, staged: usize) -> Result<()> {
        if staged > 0 {
            let mut view = self.up.slice(TABLE..TABLE + bytes_of(staged)).get_mapped_range_mut().map_err(failed)?;
            view.slice(..).fill(0);
        }
        Ok(())
    }

    /// Copies elements to element `at` of a buffer, which has room for them.
    pub fn send(&mut self, gpu: &Gpu, words: &[u64], to: &Buffer, at: usize) -> Result<()> {
        let mut at = at;
        for piece in words.chunks(self.staged()) {
            let mut encoder = encoder(gpu);
            self.stage(&mut encoder, piece, to, at)?;
            self.up.unmap();
            gpu.queue.submit([encoder.finish()]);
            let back = self.remap();
            gpu.wait()?;
            arrived(&back)?;
            self.wipe(piece.len())?;
            at += piece.len();
        }
        Ok(())
    }

    /// Adds to `out`, of `n` columns, the product of `x`, of `k` columns, with a matrix in slabs of `columns` columns.
    pub fn add_product(
        &mut self,
        gpu: &Gpu,
        (x, k): (&[u64], usize),
        (slabs, columns, trans_b): (&[Slab], usize, bool),
        (out, n): (&mut [u64], usize),
    ) -> Result<()> {
        let m = x.len() / k;
        let bytes = CHUNK.min(gpu.binding).max(bytes_of(k.max(n)));
        let by_bytes = bytes / bytes_of(k.max(n));
        let by_work = (SUBMISSION / (k as u64 * n as u64).max(1)).max(1);
        let by_groups = u64::from(gpu.groups) * u64::from(FEW);
        let step = by_bytes.min(by_work).min(by_groups).min(m as u64) as usize;
        // A last chunk of few rows would cost as much as one of many.
        let step = m.div_ceil(m.div_ceil(step.max(1)));
        for (buffer, elements, usage) in [(&mut self.x, step * k, OPERAND), (&mut self.c, step * n, RESULT)] {
            if buffer.size() < bytes_of(elements) {
                *buffer = self::buffer(&gpu.device, bytes_of(elements), usage);
            }
        }
        for (x, out) in x.chunks(step * k).zip(out.chunks_mut(step * n)) {
            self.add_chunk(gpu, (x, k), (slabs, columns, trans_b), (out, n))?;
        }
        Ok(())
    }

    /// The product of a chunk.
    fn add_chunk(
        &mut self,
        gpu: &Gpu,
        (x, k): (&[u64], usize),
        right: (&[Slab], usize, bool),
        (out, n): (&mut [u64], usize),
    ) -> Result<()> {
        let m = x.len() / k;
        let (mut now, mut at) = (encoder(gpu), 0);
        let mut pieces = x.chunks(self.staged()).peekable();
        let mut staged = 0;
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_some() {
                let words = piece.len();
                let to = self.x.clone();
                self.send(gpu, piece, &to, at)?;
                at += words;
            } else {
                self.stage(&mut now, piece, &self.x, at)?;
                staged = piece.len();
            }
        }
        self.dispatch(gpu, &mut now, (m, k, n), right)?;
        self.up.unmap();
        let used = [bytes_of(x.len()), bytes_of(out.len())];
        let mut at = 0;
        let count = out.len().div_ceil(self.staged());
        for (i, out) in out.chunks_mut(self.staged()).enumerate() {
            let bytes = bytes_of(out.len());
            now.copy_buffer_to_buffer(&self.c, bytes_of(at), &self.down, 0, bytes);
            if i + 1 == count {
                now.clear_buffer(&self.x, 0, Some(used[0]));
                now.clear_buffer(&self.c, 0, Some(used[1]));
            }
            gpu.queue.submit([std::mem::replace(&mut now, encoder(gpu)).finish()]);
            let back = (i == 0).then(|| self.remap());
            let here = mapped(&self.down, bytes, MapMode::Read);
            gpu.wait()?;
            arrived(&here)?;
            if let Some(back) = back {
                arrived(&back)?;
                self.wipe(staged)?;
            }
            let view = self.down.slice(..bytes).get_mapped_range().map_err(failed)?;
            for (out, bytes) in out.iter_mut().zip(view.chunks_exact(8)) {
                let word = bytes.try_into().map_or(0, u64::from_le_bytes);
                *out = out.wrapping_add(word);
            }
            drop(view);
            self.down.unmap();
            now.clear_buffer(&self.down, 0, Some(bytes));
            at += out.len();
        }
        // Nobody waits for the clearing: what comes next on the device comes after it.
        gpu.queue.submit([now.finish()]);
        Ok(())
    }

    /// Has the products of all slabs made; their sizes are staged.
    fn dispatch(
        &self,
        gpu: &Gpu,
        encoder: &mut CommandEncoder,
        (m, k, n): (usize, usize, usize),
        (slabs, columns, trans_b): (&[Slab], usize, bool),
    ) -> Result<()> {
        let is_few = m <= FEW_ROWS;
        let (group_rows, group_columns) = if is_few { (FEW, few_columns(trans_b)) } else { (TILE, TILE) };
        let mut table = vec![0u8; SIZES as usize * slabs.len()];
        let mut from = 0;
        let mut groups = Vec::with_capacity(slabs.len());
        for (slab, line) in slabs.iter().zip(table.chunks_exact_mut(SIZES as usize)) {
            // All sizes are those of buffers that a device binds, so they fit.
            let (inner, width, x_at, c_at) = if trans_b { (k, slab.rows, 0, from) } else { (slab.rows, n, from, 0) };
            let sums = !trans_b && from > 0;
            let sizes = [m, inner, width, k, x_at, columns, n, c_at, usize::from(sums)];
            for (bytes, size) in line.chunks_exact_mut(4).zip(sizes) {
                bytes.copy_from_slice(&(size as u32).to_le_bytes());
            }
            groups.push(((width as u32).div_ceil(group_columns), (m as u32).div_ceil(group_rows)));
            from += slab.rows;
        }
        let bytes = table.len() as u64;
        self.up.slice(..bytes).get_mapped_range_mut().map_err(failed)?.copy_from_slice(&table);
        encoder.copy_buffer_to_buffer(&self.up, 0, &self.sizes, 0, bytes);
        let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default());
        pass.set_pipeline(&gpu.programs.pipelines[usize::from(is_few)][usize::from(trans_b)]);
        for ((i, slab), (across, down)) in (0u32..).zip(slabs).zip(groups) {
            let bound = self.bound(gpu, slab);
            pass.set_bind_group(0, &bound, &[i * SIZES as u32]);
            pass.dispatch_workgroups(across, down, 1);
        }
        Ok(())
    }

    fn bound(&self, gpu: &Gpu, slab: &Slab) -> BindGroup {
        let sizes = BufferBinding { buffer: &self.sizes, offset: 0, size: NonZeroU64::new(36) };
        let entry = |binding: u32, resource| BindGroupEntry { binding, resource };
        gpu.device.create_bind_group(&BindGroupDescriptor {
            label: None,
            layout: &gpu.programs.layout,
            entries: &[
                entry(0, self.x.as_entire_binding()),
                entry(1, slab.buffer.as_entire_binding()),
                entry(2, self.c.as_entire_binding()),
                entry(3, BindingResource::Buffer(sizes)),
            ],
        })
    }
}

fn encoder(gpu: &Gpu) -> CommandEncoder {
    gpu.device.create_command_encoder(&CommandEncoderDescriptor::default())
}

/// Asks for a buffer to be mapped; the answer comes while somebody waits for the device.
fn mapped(buffer: &Buffer, bytes: u64, mode: MapMode) -> Receiver<std::result::Result<(), BufferAsyncError>> {
    let (tell, told) = channel();
    // Nobody listens any more where another error came first.
    buffer.slice(..bytes).map_async(mode, move |mapped| drop(tell.send(mapped)));
    told
}

fn arrived(told: &Receiver<std::result::Result<(), BufferAsyncError>>) -> Result<()> {
    match told.try_recv() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(Error::Failed("it did not give a buffer back".to_owned())),
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Failed(error.to_string())
}

/// Products of operands that both come from this machine.
impl Gpu {
    /// Adds to `out`, m x n by rows, the product of `x`, m x k by rows, with `y`, k x n by rows, or n x k where `trans_b`
    /// says that its axes are exchanged. False where the device has no room for `y`: `out` is as it was.
    ///
    /// # Errors
    /// [`Error::Sizes`] for operands of other sizes, [`Error::Failed`].
    pub fn add_product(
        self: &Arc<Gpu>,
        (x, y): (&[u64], &[u64]),
        (k, n): (usize, usize),
        trans_b: bool,
        out: &mut [u64],
    ) -> Result<bool> {
        let (rows, columns) = if trans_b { (n, k) } else { (k, n) };
        let Some(mut placing) = self.place(rows, columns)? else { return Ok(false) };
        placing.put(y)?;
        placing.end()?.add_product(x, trans_b, out)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, open};

    /// The first words of the result's buffer.
    fn result(gpu: &Gpu, scratch: &Scratch, mut encoder: CommandEncoder, words: usize) -> Vec<u8> {
        encoder.copy_buffer_to_buffer(&scratch.c, 0, &scratch.down, 0, bytes_of(words));
        gpu.queue.submit([encoder.finish()]);
        let here = mapped(&scratch.down, bytes_of(words), MapMode::Read);
        gpu.wait().unwrap();
        arrived(&here).unwrap();
        let bytes = scratch.down.slice(..bytes_of(words)).get_mapped_range().unwrap().to_vec();
        scratch.down.unmap();
        bytes
    }

    #[test]
    fn nothing_of_a_product_is_left_in_the_buffers_of_the_next() {
        let gpu = match open(&Options::from_environment().unwrap()) {
            Ok(gpu) => gpu,
            Err(error) => {
                assert!(std::env::var("OMBRA_EXPECT_GPU").as_deref() != Ok("1"), "a device was expected: {error}");
                eprintln!("skipped: {error}");
                return;
            }
        };
        let n = 20;
        let place = || {
            let identity: Vec<u64> = (0..n * n).map(|at| u64::from(at / n == at % n)).collect();
            let mut placing = gpu.place(n, n).unwrap().unwrap();
            placing.put(&identity).unwrap();
            placing.end().unwrap()
        };
        let (identity, x) = (place(), vec![u64::MAX; n * n]);
        let mut out = vec![0; n * n];
        identity.add_product(&x, false, &mut out).unwrap();
        assert_eq!(out, x);
        let zeros = vec![0; 8 * n * n];
        gpu.with_scratch(|scratch| {
            assert_eq!(result(&gpu, scratch, encoder(&gpu), n * n), zeros, "the result");
            // What is in the operand's buffer comes out unchanged.
            let mut again = encoder(&gpu);
            scratch.dispatch(&gpu, &mut again, (n, n, n), (&identity.slabs, n, false))?;
            scratch.up.unmap();
            assert_eq!(result(&gpu, scratch, again, n * n), zeros, "the operand");
            let back = scratch.remap();
            gpu.wait()?;
            arrived(&back)?;
            Ok(())
        })
        .unwrap();
    }
}
