//! Matrices on the card whose content is known here, with memory around them that must stay as it is.

use half::bf16;
use tune_cuda::{Buffer, Context, Element, View, ViewMut};

/// What is compared with f64.
pub(crate) trait Number: Element {
    fn of(x: f64) -> Self;
    fn widened(self) -> f64;
}

impl Number for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }
    fn widened(self) -> f64 {
        f64::from(self)
    }
}

impl Number for bf16 {
    fn of(x: f64) -> Self {
        bf16::from_f64(x)
    }
    fn widened(self) -> f64 {
        self.to_f64()
    }
}

/// What all bytes are before something is written: no number in f32 and bf16.
const POISON: u8 = 0xff;

/// A matrix with `pad` more columns, and what it was given.
pub(crate) struct Matrix<T> {
    buffer: Buffer<T>,
    rows: usize,
    cols: usize,
    stride: usize,
    /// Without a gap, as the card has it.
    pub(crate) host: Vec<f64>,
}

/// Numbers between -`scale` and `scale`, as type `T` has them.
pub(crate) fn random<T: Number>(seed: u64, count: usize, scale: f64) -> Vec<T> {
    let unit = |i| (tune_reference::dropout::mix(seed, i) >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
    (0..count as u64).map(|i| T::of(scale * unit(i))).collect()
}

/// The numbers of a buffer.
pub(crate) fn read<T: Number>(context: &Context, buffer: &Buffer<T>) -> Result<Vec<f64>, String> {
    Ok(widened(&context.download(buffer).map_err(|e| e.to_string())?))
}

pub(crate) fn widened<T: Number>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.widened()).collect()
}

impl<T: Number> Matrix<T> {
    pub(crate) fn random(context: &Context, seed: u64, (rows, cols): (usize, usize), pad: usize, scale: f64) -> Self {
        Self::of(context, &random::<T>(seed, rows * cols, scale), (rows, cols), pad)
    }

    pub(crate) fn of(context: &Context, numbers: &[T], (rows, cols): (usize, usize), pad: usize) -> Self {
        let stride = cols + pad;
        let mut wide = vec![poison::<T>(); rows * stride];
        for (to, from) in wide.chunks_exact_mut(stride.max(1)).zip(numbers.chunks_exact(cols.max(1))) {
            to[..cols].copy_from_slice(from);
        }
        Self { buffer: context.upload(&wide), rows, cols, stride, host: widened(numbers) }
    }

    pub(crate) fn poisoned(context: &Context, (rows, cols): (usize, usize), pad: usize) -> Self {
        let mut buffer = context.buffer(rows * (cols + pad));
        context.fill(&mut buffer, POISON);
        Self { buffer, rows, cols, stride: cols + pad, host: Vec::new() }
    }

    pub(crate) fn view(&self) -> View<'_, T> {
        self.buffer.part(0, (self.rows, self.cols), self.stride)
    }

    pub(crate) fn view_mut(&mut self) -> ViewMut<'_, T> {
        self.buffer.part_mut(0, (self.rows, self.cols), self.stride)
    }

    /// What is there now, without a gap. What is between the rows must be as it was.
    pub(crate) fn read(&self, context: &Context) -> Result<Vec<f64>, String> {
        let wide = context.download(&self.buffer).map_err(|e| e.to_string())?;
        let mut found = Vec::with_capacity(self.rows * self.cols);
        for row in wide.chunks_exact(self.stride.max(1)) {
            found.extend(row[..self.cols].iter().map(|x| x.widened()));
            if row[self.cols..].iter().any(|x| bytemuck::bytes_of(x).iter().any(|&byte| byte != POISON)) {
                return Err("memory beside a matrix was written".into());
            }
        }
        Ok(found)
    }

    /// As many numbers of type `D` from each row's beginning on, which are no longer than those of type `T`.
    pub(crate) fn beginnings<D: Number>(&self, context: &Context) -> Result<Vec<f64>, String> {
        let wide = context.download(&self.buffer).map_err(|e| e.to_string())?;
        let bytes: &[u8] = bytemuck::cast_slice(&wide);
        let of_row = |row: &[u8]| -> Vec<f64> {
            let numbers = row.chunks_exact(size_of::<D>()).take(self.cols);
            numbers.map(|bytes| bytemuck::pod_read_unaligned::<D>(bytes).widened()).collect()
        };
        Ok(bytes.chunks_exact(self.stride * size_of::<T>()).flat_map(of_row).collect())
    }
}

fn poison<T: Number>() -> T {
    bytemuck::pod_read_unaligned(&[POISON; 8][..size_of::<T>()])
}
