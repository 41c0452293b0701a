//! The two formats of disks, between the words of the model and those of QEMU.

use sterna_model::image::Format;
use sterna_qemu::config;

pub fn of(format: Format) -> config::Format {
    match format {
        Format::Raw => config::Format::Raw,
        Format::Qcow2 => config::Format::Qcow2,
    }
}

/// As file names end.
pub fn word(format: Format) -> &'static str {
    of(format).as_str()
}
