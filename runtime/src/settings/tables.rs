//! Tables of functions that are looked up, made once for a run: every step looks up the same ones.

use std::cell::RefCell;
use std::rc::Rc;

use ombra_ir::Result;
use ombra_ir::curve::{COEFFICIENTS, Cells, Curve};
use ombra_kernels::entries::Tables;

/// Tables that are kept at most; the oldest goes where there are more.
const MOST: usize = 64;

/// Tables by the function and its cells, in the order in which they were made.
#[derive(Default)]
pub struct CurveTables(RefCell<Vec<Made>>);

/// Tables, and what they were made from.
type Made = ((Curve, Cells), Rc<Tables<COEFFICIENTS>>);

impl CurveTables {
    /// The tables of `curve` in `cells`.
    ///
    /// # Errors
    /// Those of [`Cells::polynomials`].
    pub fn of(&self, curve: Curve, cells: Cells) -> Result<Rc<Tables<COEFFICIENTS>>> {
        let mut kept = self.0.borrow_mut();
        if let Some((_, tables)) = kept.iter().find(|(of, _)| *of == (curve, cells)) {
            return Ok(Rc::clone(tables));
        }
        let tables = Rc::new(Tables::new(&cells.polynomials(curve)?));
        if kept.len() == MOST {
            kept.remove(0);
        }
        kept.push(((curve, cells), Rc::clone(&tables)));
        Ok(tables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_made_once_and_the_oldest_goes() {
        let tables = CurveTables::default();
        let cells = |scale: u8| Cells { window: 16, from: 12, cell: 10, scale };
        let first = tables.of(Curve::Gelu, cells(20)).unwrap();
        assert!(Rc::ptr_eq(&first, &tables.of(Curve::Gelu, cells(20)).unwrap()));
        assert!(!Rc::ptr_eq(&first, &tables.of(Curve::Gelu, cells(21)).unwrap()));
        let all = (16..24).flat_map(|scale| (10..20).map(move |from| Cells { from, ..cells(scale) }));
        all.for_each(|cells| drop(tables.of(Curve::Gelu, cells).unwrap()));
        assert_eq!(tables.0.borrow().len(), MOST);
        assert!(!Rc::ptr_eq(&first, &tables.of(Curve::Gelu, cells(20)).unwrap()), "it was made anew");
    }
}
