//! Switches the guest off when the ACPI power button is pressed.

use std::fs::{self, File};
use std::io::Read;
use std::thread;
use std::time::Duration;

use crate::system;

/// `struct input_event` on 64-bit Linux: two 8-byte times, then type and code (u16), value (i32).
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// Watches every input device there is; one thread each, the last one in this thread.
pub fn run() {
    let devices = wait_for_devices();
    for device in devices {
        thread::spawn(move || watch(device));
    }
}

/// The button's driver is loaded before this program, but its device node may appear a moment later.
fn wait_for_devices() -> Vec<File> {
    for _ in 0..100 {
        let found = input_devices();
        if !found.is_empty() {
            return found;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Vec::new()
}

fn input_devices() -> Vec<File> {
    let entries = fs::read_dir("/dev/input").into_iter().flatten().flatten();
    let events = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("event"));
    events.filter_map(|entry| File::open(entry.path()).ok()).collect()
}

fn watch(mut device: File) {
    let mut event = [0; EVENT_BYTES];
    while device.read_exact(&mut event).is_ok() {
        if is_power_pressed(&event) {
            let _ = fs::write("/dev/kmsg", "<5>workload: power button, switching off\n");
            system::power_off();
        }
    }
}

fn is_power_pressed(event: &[u8; EVENT_BYTES]) -> bool {
    let kind = u16::from_le_bytes([event[16], event[17]]);
    let code = u16::from_le_bytes([event[18], event[19]]);
    let value = i32::from_le_bytes([event[20], event[21], event[22], event[23]]);
    kind == EV_KEY && code == KEY_POWER && value == PRESSED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> [u8; EVENT_BYTES] {
        let mut bytes = [0; EVENT_BYTES];
        bytes[16..18].copy_from_slice(&kind.to_le_bytes());
        bytes[18..20].copy_from_slice(&code.to_le_bytes());
        bytes[20..24].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    #[test]
    fn only_pressing_the_power_key_counts() {
        assert!(is_power_pressed(&event(EV_KEY, KEY_POWER, PRESSED)));
        assert!(!is_power_pressed(&event(EV_KEY, KEY_POWER, 0)), "released");
        assert!(!is_power_pressed(&event(EV_KEY, 30, PRESSED)), "another key");
        assert!(!is_power_pressed(&event(0, 0, 0)), "end of a report");
    }
}
