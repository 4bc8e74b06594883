//! Starting a kernel with arguments of the kinds that it declares.

use cudarc::driver::sys::{self, CUdeviceptr};

use crate::context::Context;
use crate::modules::Kernel;

/// The most arguments that any kernel has.
const MOST: usize = 40;

/// Blocks of a grid in its second direction, at most.
pub(crate) const MOST_ROWS: usize = 65_535;

/// A launch that is being put together. Arguments are given in the order of the kernel's parameters.
pub(crate) struct Launch<'a> {
    context: &'a Context,
    kernel: &'static Kernel,
    arguments: [u64; MOST],
    count: usize,
}

/// Blocks, threads of each in two directions, and bytes of shared memory of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) grid: [usize; 3],
    pub(crate) threads: [usize; 2],
    pub(crate) shared: usize,
}

impl Size {
    /// So many blocks in a row.
    pub(crate) fn row(blocks: usize, threads: usize, shared: usize) -> Self {
        Self { grid: [blocks, 1, 1], threads: [threads, 1], shared }
    }

    /// Blocks over the columns and rows of a matrix, of which a thread takes `each` neighbours of a row.
    pub(crate) fn matrix(rows: usize, cols: usize, each: usize, threads: usize) -> Self {
        let grid = [cols.div_ceil(each * threads), rows.min(MOST_ROWS), 1];
        Self { grid, threads: [threads, 1], shared: 0 }
    }
}

impl<'a> Launch<'a> {
    pub(crate) fn new(context: &'a Context, kernel: &'static Kernel) -> Self {
        Self { context, kernel, arguments: [0; MOST], count: 0 }
    }

    /// An address; zero where the kernel allows none.
    pub(crate) fn pointer(self, address: CUdeviceptr) -> Self {
        self.push(b'p', address)
    }

    /// A number of rows or elements, or a stride.
    pub(crate) fn long(self, value: usize) -> Self {
        self.push(b'l', value as u64)
    }

    /// A key: all 64 bits.
    pub(crate) fn key(self, value: u64) -> Self {
        self.push(b'l', value)
    }

    /// A smaller number.
    pub(crate) fn int(self, value: usize) -> Self {
        let value = i32::try_from(value).unwrap_or_else(|_| panic!("{}: {value} is too much", self.kernel.name));
        self.push(b'i', u64::from(value as u32))
    }

    /// A number with a fraction.
    pub(crate) fn float(self, value: f32) -> Self {
        self.push(b'f', u64::from(value.to_bits()))
    }

    fn push(mut self, kind: u8, bits: u64) -> Self {
        let declared = self.kernel.parameters.as_bytes().get(self.count);
        assert_eq!(declared, Some(&kind), "{}: argument {} is of another kind", self.kernel.name, self.count);
        self.arguments[self.count] = bits;
        self.count += 1;
        self
    }

    /// Queues it. Nothing is done for an empty grid.
    pub(crate) fn go(mut self, size: Size) {
        let (context, kernel) = (self.context, self.kernel);
        assert_eq!(self.count, kernel.parameters.len(), "{}: arguments are missing", kernel.name);
        if size.grid.contains(&0) || context.0.failed() {
            return;
        }
        context.0.bind();
        let found = context
            .0
            .modules
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .function(kernel, context.0.card().shared_memory);
        let function = match found {
            Ok(function) => function,
            Err(error) => return context.0.remember(error),
        };
        let [x, y, z] = size.grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let mut pointers = [std::ptr::null_mut(); MOST];
        for (pointer, argument) in pointers.iter_mut().zip(&mut self.arguments) {
            *pointer = std::ptr::from_mut(argument).cast();
        }
        context.0.queue(kernel.name, || {
            // SAFETY: an argument for each parameter, of its size, as declared and tested against the compiled kernel. The
            // wrappers see to it that what the addresses lead to is as large as the kernel makes of the sizes.
            unsafe {
                sys::cuLaunchKernel(
                    function,
                    x,
                    y,
                    z,
                    size.threads[0] as u32,
                    size.threads[1] as u32,
                    1,
                    size.shared as u32,
                    context.0.stream,
                    pointers.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
        });
    }
}
