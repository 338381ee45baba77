//! What is wrong with the operands of a kernel.

/// Why a kernel was not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A view of a matrix reaches outside its buffer.
    Outside {
        /// Rows of the view.
        rows: usize,
        /// Columns of the view.
        cols: usize,
        /// Elements from one row to the next.
        row_stride: usize,
        /// Elements from one column to the next.
        col_stride: usize,
        /// Elements of the buffer.
        len: usize,
    },
}
