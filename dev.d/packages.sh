# The Debian packages Sterna needs, each with its reason, and how they are installed. Sourced by ./dev.

# name | reason. QEMU itself is chosen in qemu.sh.
readonly PACKAGES_RUN="
iproute2|network namespaces, bridges and VXLAN of the lab
nftables|firewall rules of a host
procps|sysctl for bridges
dnsmasq-base|hands out the addresses of overlay networks
wireguard-go|encrypts what goes to other datacentres where the kernel cannot
wireguard-tools|sets up that tunnel
xorriso|writes cloud-init disks
iputils-ping|round trips in sterna host check
"
readonly PACKAGES_BUILD="
build-essential|C compiler for SQLite and the TLS library
ca-certificates|verified downloads by cargo
git|version in the binary
"
readonly PACKAGES_IMAGE="
mtools|writes the boot partition without mounting it
syslinux|boot loader of the guest image
syslinux-common|modules and MBR of the boot loader
cpio|packs the initramfs
zstd|compresses images
lz4|compresses the initramfs
xz-utils|unpacks kernel modules
fdisk|partitions the disk (sfdisk)
kmod|module dependencies of the guest kernel
"
readonly PACKAGES_TEST="
curl|reads the guest over HTTP
jq|reads cargo metadata for the arrows check
shellcheck|checks the scripts
busybox-static|plays a guest that asks for its address
"
# Nothing of them is started: the benchmark does that, in folders of its own.
readonly PACKAGES_BENCH_WAN="
libvirt-daemon|another manager, beside which moves are measured
libvirt-clients|its command
"
readonly PACKAGES_DEBIAN_IMAGE="
mmdebstrap|builds the debian guest's file system
e2fsprogs|writes an ext4 file system without mounting it
"

is_installed() { [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null) == ii* ]]; }

# Prints "name|reason" for every package of the given lists that is not installed.
missing_packages() {
    local line
    while IFS= read -r line; do
        [[ -z $line ]] || is_installed "${line%%|*}" || printf '%s\n' "$line"
    done < <(printf '%s\n' "$@" | sort -u)
}

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    else
        sudo "$@"
    fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
}

# The lists are refreshed at most once a run, and only when something is to be fetched.
APT_IS_FRESH=""
ensure_apt_lists() {
    [[ -n $APT_IS_FRESH ]] || step "Refreshing Debian's package lists" apt_get update
    APT_IS_FRESH=1
}

# Somebody's Ctrl-C, ours or another's, may have left packages half configured; apt would refuse to go on.
finish_interrupted_dpkg() {
    [[ -z $(dpkg --audit 2>/dev/null) ]] ||
        step "Finishing an interrupted installation" as_root env DEBIAN_FRONTEND=noninteractive dpkg --configure -a
}

# ensure_packages LIST...
ensure_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@" | cut -d'|' -f1)
    ((${#missing[@]})) || return 0
    ensure_apt_lists
    finish_interrupted_dpkg
    step "Installing ${#missing[@]} Debian packages" apt_get install -y --no-install-recommends "${missing[@]}"
    printf '%s\n' "${missing[@]}" >>"$ROOT/target/dev/installed-packages"
}
