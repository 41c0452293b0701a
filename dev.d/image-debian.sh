# Builds the debian guest image: a whole Debian with a web server and a database, on request. Sourced by ./dev.
#
# An MBR disk: a FAT partition that syslinux boots the kernel from, and the root file system, which is last so that
# cloud-init can grow it with its volume. Needs root (or user namespaces) for mmdebstrap; no mounts of the disk.

readonly DEBIAN_GUEST_PACKAGES="systemd-sysv,udev,dbus,cloud-init,cloud-guest-utils,nginx-light,postgresql,qemu-guest-agent,openssh-server,linux-image-cloud-amd64,initramfs-tools,busybox,zstd,e2fsprogs,iproute2,ca-certificates,less,procps"
readonly DEBIAN_BOOT_MIB=160 DEBIAN_ROOT_MIB=2560

ensure_debian_image() {
    local hash
    hash=$(inputs_hash guest/debian dev.d/image-debian.sh)
    if is_current debian "$hash"; then
        say "Image debian is up to date (target/images/debian.qcow2)"
        return
    fi
    ensure_packages "$PACKAGES_IMAGE" "$PACKAGES_DEBIAN_IMAGE"
    is_installed qemu-utils || ensure_qemu
    ensure_apt_lists
    # shellcheck disable=SC2153 # ROOT is set by ./dev.
    mkdir -p "$IMAGES" "$ROOT/target/guest"
    step "Installing Debian into a folder" bootstrap_debian "$ROOT/target/guest/debian" "$hash"
    step "Packing the debian image" pack_debian "$ROOT/target/guest/debian" "$IMAGES/debian.qcow2"
    printf '%s\n' "$hash" >"$IMAGES/debian.inputs"
    say "Image debian: target/images/debian.qcow2, $(du -h "$IMAGES/debian.qcow2" | cut -f1)"
}

# bootstrap_debian WORK HASH: WORK/root is complete when WORK/done holds the hash of what it was made from.
bootstrap_debian() {
    local work=$1 files="$ROOT/guest/debian"
    [[ $(cat "$work/done" 2>/dev/null) != "$2" ]] || return 0
    as_root rm -rf "$work"
    mkdir -p "$work"
    guest_sources "$(codename)" >"$work/guest.sources"
    # The initramfs is configured before the kernel arrives, so that it is made once, and small.
    as_root mmdebstrap --variant=minbase --components=main --include="$DEBIAN_GUEST_PACKAGES" \
        --essential-hook="mkdir -p \"\$1/etc/initramfs-tools/conf.d\"" \
        --essential-hook="copy-in $files/etc/initramfs-tools/conf.d/sterna /etc/initramfs-tools/conf.d" \
        --essential-hook="copy-in $files/etc/initramfs-tools/modules /etc/initramfs-tools" \
        --customize-hook="sync-in $files/etc /etc" \
        --customize-hook="chroot \"\$1\" systemctl enable systemd-networkd" \
        --customize-hook="rm -f \"\$1/etc/ssh/ssh_host_\"* \"\$1/etc/machine-id\"" \
        --customize-hook="touch \"\$1/etc/machine-id\"" \
        "$(codename)" "$work/root" "$work/guest.sources"
    printf '%s\n' "$2" >"$work/done"
}

# What the machine itself uses: the release and its security updates.
guest_sources() {
    derive_source "$1" "$1"
    echo
    derive_source "$1-security" "$1-security"
}

# pack_debian WORK TARGET
pack_debian() {
    local work=$1 target=$2 root="$1/root" disk="$1/debian.raw" fat="$1/boot.fat" ext4="$1/root.ext4"
    as_root rm -f "$disk" "$fat" "$ext4"
    truncate -s "${DEBIAN_BOOT_MIB}M" "$fat"
    mformat -i "$fat" -v BOOT -N 7E12B ::
    mcopy -i "$fat" "$root"/boot/vmlinuz-* ::vmlinuz
    mcopy -i "$fat" "$root"/boot/initrd.img-* ::initrd
    mcopy -i "$fat" "$ROOT/guest/debian/syslinux.cfg" ::syslinux.cfg
    syslinux --install "$fat"
    truncate -s "${DEBIAN_ROOT_MIB}M" "$ext4"
    as_root mke2fs -q -t ext4 -L root -d "$root" "$ext4"
    truncate -s "$((1 + DEBIAN_BOOT_MIB + DEBIAN_ROOT_MIB))M" "$disk"
    /sbin/sfdisk -q "$disk" <<TABLE
label: dos
label-id: 0x7e12b000
start=1MiB, size=${DEBIAN_BOOT_MIB}MiB, type=e, bootable
start=$((1 + DEBIAN_BOOT_MIB))MiB, type=83
TABLE
    dd if=/usr/lib/syslinux/mbr/mbr.bin of="$disk" conv=notrunc status=none
    dd if="$fat" of="$disk" bs=1M seek=1 conv=notrunc,sparse status=none
    dd if="$ext4" of="$disk" bs=1M seek=$((1 + DEBIAN_BOOT_MIB)) conv=notrunc,sparse status=none
    qemu-img convert -f raw -O qcow2 -c -o compat=1.1,compression_type=zstd "$disk" "$target.new"
    as_root rm -f "$disk" "$fat" "$ext4"
    mv "$target.new" "$target"
}
