# Builds the tiny guest image into target/images; debian is in image-debian.sh. Sourced by ./dev.
#
# tiny: an MBR disk with a FAT partition (syslinux, Debian's cloud kernel, an initramfs of busybox and the workload) and
# a raw partition for the workload's counter. Made of plain files: no mounts, no loop devices, no root.

# shellcheck disable=SC2153 # ROOT is set by ./dev.
readonly IMAGES="$ROOT/target/images"
readonly BOOT_MIB=28 COUNTER_MIB=4 # The kernel and initramfs take about 17 MiB.

image_main() {
    case ${1:-tiny} in
        tiny) ensure_tiny_image ;;
        debian) ensure_debian_image ;;
        *) die "no image is called '$1': there are tiny and debian" ;;
    esac
}

# inputs_hash PATH...: of everything an image is made from. The kernel's version is left out on purpose: an image is
# not rebuilt because Debian published another kernel (remove target/images to get it).
inputs_hash() {
    (cd "$ROOT" && find "$@" -type f -not -path '*/target/*' -print0 | sort -z | xargs -0 sha256sum) | sha256sum | cut -c1-16
}

is_current() { [[ -s $IMAGES/$1.qcow2 && $(cat "$IMAGES/$1.inputs" 2>/dev/null) == "$2" ]]; }

ensure_tiny_image() {
    local hash
    hash=$(inputs_hash guest/tiny guest/workload dev.d/image.sh)
    if is_current tiny "$hash"; then
        say "Image tiny is up to date (target/images/tiny.qcow2)"
        return
    fi
    ensure_packages "$PACKAGES_IMAGE" "$PACKAGES_BUILD"
    is_installed qemu-utils || ensure_qemu
    mkdir -p "$IMAGES" "$ROOT/target/guest"
    step "Building the guest's workload" build_workload
    [[ -s $ROOT/target/guest/kernel/boot/vmlinuz ]] || ensure_apt_lists
    step "Fetching the guest's kernel and busybox" fetch_kernel_and_busybox
    step "Packing the tiny image" pack_tiny "$IMAGES/tiny.qcow2"
    printf '%s\n' "$hash" >"$IMAGES/tiny.inputs"
    say "Image tiny: target/images/tiny.qcow2, $(du -h "$IMAGES/tiny.qcow2" | cut -f1)"
}

build_workload() {
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target x86_64-unknown-linux-gnu \
        --manifest-path "$ROOT/guest/workload/Cargo.toml" --target-dir "$ROOT/target/guest"
}

# Unpacks, never installs: the build machine's own kernel is not touched.
fetch_kernel_and_busybox() {
    local work="$ROOT/target/guest" kernel
    [[ -s $work/kernel/boot/vmlinuz ]] && return
    rm -rf "$work/debs" "$work/kernel" "$work/kernel.new"
    mkdir -p "$work/debs" "$work/kernel.new"
    cd "$work/debs" || return
    # The meta package names the current kernel; the signed one is what it depends on.
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-[0-9]/ && !found { print $2; found = 1 }')
    [[ -n $kernel ]] || { echo "Debian's package lists name no cloud kernel" >&2; return 1; }
    # _apt may not enter every checkout; this warning would only worry people.
    apt-get -o APT::Sandbox::User="$(id -un)" download "$kernel" busybox-static
    for package in *.deb; do dpkg -x "$package" "$work/kernel.new"; done
    # Debian 13 has everything below /usr.
    for folder in bin lib; do [[ -e $work/kernel.new/$folder ]] || ln -s "usr/$folder" "$work/kernel.new/$folder"; done
    mv "$work"/kernel.new/boot/vmlinuz-* "$work/kernel.new/boot/vmlinuz"
    mv "$work/kernel.new" "$work/kernel"
}

# pack_tiny TARGET: written aside and renamed, so that an interrupted run leaves no half image.
pack_tiny() {
    local work="$ROOT/target/guest" disk="$ROOT/target/guest/tiny.raw"
    pack_initramfs "$work"
    write_disk "$work" "$disk"
    qemu-img convert -f raw -O qcow2 -o compat=1.1,lazy_refcounts=off "$disk" "$1.new"
    rm -f "$disk"
    mv "$1.new" "$1"
}

pack_initramfs() {
    local work=$1 root="$1/initramfs" files="$ROOT/guest/tiny" applet
    rm -rf "$root"
    mkdir -p "$root"/{bin,dev,etc,proc,sys,root,run,tmp}
    ln -s . "$root/usr" # depmod of Debian 13 looks below /usr.
    install -m 755 "$work"/kernel/bin/busybox "$work/x86_64-unknown-linux-gnu/release/workload" "$root/bin/"
    for applet in $("$root/bin/busybox" --list); do
        [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
    done
    install -m 755 "$files/init" "$root/init"
    install -m 755 "$files"/{nic-added,on-uevent,udhcpc.script} "$root/etc/"
    install -m 644 "$files/profile" "$root/etc/profile"
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
    install -m 644 "$files/modules" "$root/etc/modules"
    collect_modules "$work/kernel" "$root"
    # lz4: under emulation the boot spends longer on unpacking than on reading.
    (cd "$root" && find . -print0 | sort -z | cpio --null --quiet -o -H newc -R 0:0 --reproducible | lz4 -q -l -9 >"$work/initrd")
}

# collect_modules KERNEL_ROOT TARGET: copies the modules of guest/tiny/modules and what they depend on.
collect_modules() {
    local kernel=$1 target=$2 version name file
    version=$(basename "$kernel"/lib/modules/*)
    /sbin/depmod -b "$kernel" "$version"
    mkdir -p "$target/lib/modules/$version"
    while read -r _ name; do
        # Nothing is printed for what is built in.
        { /sbin/modprobe -d "$kernel" -S "$version" --show-depends "$name" || true; } | sed -n 's/^insmod //p' |
            while read -r file _; do add_module "$file" "$target/lib/modules/$version"; done
    done < <(grep -v '^#' "$ROOT/guest/tiny/modules")
    cp "$kernel/lib/modules/$version"/modules.{builtin,order} "$target/lib/modules/$version/"
    /sbin/depmod -b "$target" "$version"
    (cd "$target/lib/modules/$version" && rm -f modules.{builtin,order} ./*.bin modules.alias modules.symbols modules.devname)
}

# Debian 13 keeps modules compressed; busybox wants them plain. Without debug information, type information and
# signatures they load in half the time.
add_module() {
    local target
    target="$2/$(basename "$1" .xz)"
    [[ ! -e $target ]] || return 0
    case $1 in
        *.xz) xz -dc "$1" >"$target" ;;
        *) cp "$1" "$target" ;;
    esac
    strip --strip-debug --remove-section=.BTF "$target"
}

write_disk() {
    local work=$1 disk=$2 start=$((1 << 20)) fat="$1/boot.fat"
    rm -f "$fat" "$disk"
    truncate -s "${BOOT_MIB}M" "$fat"
    mformat -i "$fat" -v TINY -N 7E12A ::
    mcopy -i "$fat" "$work/kernel/boot/vmlinuz" ::vmlinuz
    mcopy -i "$fat" "$work/initrd" ::initrd
    mcopy -i "$fat" "$ROOT/guest/tiny/syslinux.cfg" ::syslinux.cfg
    syslinux --install "$fat"
    truncate -s "$((1 + BOOT_MIB + COUNTER_MIB))M" "$disk"
    /sbin/sfdisk -q "$disk" <<TABLE
label: dos
label-id: 0x7e12a000
start=1MiB, size=${BOOT_MIB}MiB, type=e, bootable
start=$((1 + BOOT_MIB))MiB, size=${COUNTER_MIB}MiB, type=da
TABLE
    dd if=/usr/lib/syslinux/mbr/mbr.bin of="$disk" conv=notrunc status=none
    dd if="$fat" of="$disk" bs=1M seek=$((start >> 20)) conv=notrunc,sparse status=none
}
