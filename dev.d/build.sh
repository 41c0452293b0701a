# Building the one binary. Sourced by ./dev.

# The binary that was built last by ensure_binary.
sterna_binary() {
    if [[ -n ${STERNA_DEBUG:-} ]]; then
        printf '%s' "$ROOT/target/debug/sterna"
    else
        printf '%s' "$ROOT/target/release/sterna"
    fi
}

# With STERNA_DEBUG set, a debug build: quicker to make, slower to run.
ensure_binary() {
    local profile=(--release)
    [[ -z ${STERNA_DEBUG:-} ]] || profile=()
    step "Building sterna" cargo build --locked --bin sterna "${profile[@]}"
}

# run_as_root COMMAND...: in place of this script, with the terminal.
exec_as_root() {
    trap - INT TERM
    if [[ $EUID -eq 0 ]]; then
        exec "$@"
    else
        exec sudo --preserve-env=STERNA_QEMU,STERNA_LOG "$@"
    fi
}
