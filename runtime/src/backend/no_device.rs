//! What stands for a device in a program that was built without the feature `gpu`: nothing.

use ombra_ir::Result;

use super::products::{Absent, Operands, Why};

/// A device, of which there is none.
pub struct Device(Nothing);

enum Nothing {}

/// Where the parts of one weight are.
pub type Places = ();

impl Device {
    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn open() -> std::result::Result<Device, Absent> {
        let text = "this program was built without the feature gpu".to_owned();
        Err(Absent { why: Why::NotBuilt, text, help: "build ombra-run with --features gpu" })
    }

    /// The device in words.
    pub fn name(&self) -> &str {
        match self.0 {}
    }

    /// As on a device.
    ///
    /// # Errors
    /// None.
    pub fn trial(&self, _: [usize; 3], _: usize) -> Result<Option<(bool, String)>> {
        match self.0 {}
    }

    /// As on a device.
    pub fn failure(&self) -> Option<String> {
        match self.0 {}
    }

    /// As on a device.
    pub fn placed_bytes(&self) -> u64 {
        match self.0 {}
    }

    /// As on a device.
    pub fn left_bytes(&self) -> u64 {
        match self.0 {}
    }

    /// As on a device.
    ///
    /// # Errors
    /// None.
    pub fn product(
        &self,
        _: &Places,
        _: usize,
        _: &Operands<'_>,
        _: &mut dyn FnMut(usize, &mut [u64]) -> Result<()>,
    ) -> Result<Option<Vec<u64>>> {
        match self.0 {}
    }
}
