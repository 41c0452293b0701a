# What the machine must be like. Sourced by ./dev.

readonly CARGO_MIN=1.95
readonly MEMORY_MIN_MIB=3000 DISK_MIN_MIB=8000

check_machine() {
    check_system
    check_root
    check_cargo
    check_room
}

check_system() {
    [[ $(uname -m) == x86_64 ]] || die "Sterna runs on x86_64; this machine is $(uname -m)."
    case $(codename) in
        bookworm | trixie) ;;
        *) die "this needs Debian 12 or 13; this machine is $( (. /etc/os-release && echo "${PRETTY_NAME:-unknown}"))." ;;
    esac
}

check_root() {
    [[ $EUID -ne 0 ]] || return 0
    command -v sudo >/dev/null || die "this needs root or sudo: network namespaces and packages."
    # Asked for now, because steps run without a terminal to ask at.
    sudo -v || die "sudo refuses: this needs root."
}

check_cargo() {
    local version
    # rustup puts cargo there, and not every shell has been told.
    command -v cargo >/dev/null || [[ ! -x ${HOME:-}/.cargo/bin/cargo ]] || PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null || die "cargo is missing: install Rust $CARGO_MIN or newer with rustup."
    version=$(cargo --version | awk '{print $2}')
    is_version_at_least "$version" "$CARGO_MIN" ||
        die "cargo $version is too old: $CARGO_MIN or newer is needed (rustup update stable)."
}

is_version_at_least() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$2" ]]; }

check_room() {
    local memory_mib disk_mib
    memory_mib=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
    disk_mib=$(df -Pm "$ROOT" | awk 'NR == 2 { print $4 }')
    ((memory_mib >= MEMORY_MIN_MIB)) || die "$memory_mib MiB of memory are free; $MEMORY_MIN_MIB MiB are needed."
    # What is built already needs no room again.
    disk_mib=$((disk_mib + $(built_mib)))
    ((disk_mib >= DISK_MIN_MIB)) || die "$disk_mib MiB of disk are free below $ROOT; $DISK_MIN_MIB MiB are needed."
}

built_mib() { [[ -d $ROOT/target ]] && du -sm "$ROOT/target" | cut -f1 || echo 0; }
