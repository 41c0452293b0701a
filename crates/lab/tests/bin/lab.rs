//! The lab's commands without the rest of the binary.

fn main() -> std::process::ExitCode {
    sterna_lab::cli(std::env::args_os())
}
