# Which QEMU is installed, and the two versions the tests run side by side. Sourced by ./dev.
#
# Debian 12 has QEMU 7.2, and 10.x in its backports suite; Debian 13 has 10.x. The backports entry is derived from
# the machine's own entry for bookworm, so that a mirror or proxy chosen for this machine is used for it, too.

readonly BACKPORTS_FILE=/etc/apt/sources.list.d/sterna-backports.sources
# Both from the same suite, so not in packages.sh.
readonly QEMU_PACKAGES=(qemu-system-x86 qemu-utils)

codename() { (. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}"); }

# derive_source FROM_SUITE TO_SUITE: the machine's deb822 entry for FROM_SUITE main, rewritten for TO_SUITE.
derive_source() {
    local from=$1 to=$2
    { derive_from_deb822 "$from" "$to"; derive_from_lines "$from" "$to"; } | awk 'BEGIN { RS = ""; ORS = "\n" } NR == 1'
}

derive_from_deb822() {
    local files=(/etc/apt/sources.list.d/*.sources)
    [[ -e ${files[0]} ]] || return 0
    # One paragraph per entry; an awk record is a paragraph. A blank line between files keeps them apart.
    for file in "${files[@]}"; do cat "$file"; echo; done | grep -v '^#' | awk -v from="$1" -v to="$2" '
        BEGIN { RS = ""; FS = "\n" }
        {
            uris = ""; suites = ""; signed = ""; components = ""; enabled = "yes"; inside = ""
            for (i = 1; i <= NF; i++) {
                key = tolower($i); sub(/:.*/, "", key)
                value = $i; sub(/^[^:]*:[ \t]*/, "", value)
                if ($i ~ /^[ \t]/) { if (inside == "signed-by") signed = signed "\n" $i; continue }
                inside = key
                if (key == "uris") uris = value
                if (key == "suites") suites = " " value " "
                if (key == "components") components = " " value " "
                if (key == "signed-by") signed = value
                if (key == "enabled") enabled = tolower(value)
            }
            if (enabled == "no" || suites !~ " " from " " || components !~ / main /) next
            printf "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n", uris, to
            if (signed != "") printf "Signed-By: %s\n", signed
            printf "\n"
        }'
}

derive_from_lines() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | awk -v from="$1" -v to="$2" '
        $1 == "deb" {
            line = $0; options = ""
            if (match(line, /\[[^]]*\]/)) { options = substr(line, RSTART + 1, RLENGTH - 2); sub(/\[[^]]*\][ \t]*/, "", line) }
            count = split(line, part, /[ \t]+/)
            if (part[3] != from || index(line " ", " main ") == 0) next
            printf "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n", part[2], to
            if (match(options, /signed-by=[^ ]*/)) printf "Signed-By: %s\n", substr(options, RSTART + 10, RLENGTH - 10)
            printf "\n"
        }' || true
}

has_backports() { [[ $(apt-cache policy qemu-system-x86 2>/dev/null) == *bpo12* ]]; }

write_backports_file() {
    local entry
    entry=$(derive_source bookworm bookworm-backports)
    [[ -n $entry ]] || return 1
    {
        echo "# Made by Sterna's ./dev to install QEMU 10 on Debian 12; derived from this machine's own entry for bookworm."
        echo "# Undo: delete this file and run apt-get update. Packages already installed from it stay until removed."
        printf '%s\n' "$entry"
    } | as_root tee "$BACKPORTS_FILE" >/dev/null
}

# Leaves no trace when the suite does not exist at this machine's mirror.
enable_backports() {
    if has_backports; then return 0; fi
    [[ -e $BACKPORTS_FILE ]] || write_backports_file || return 1
    if ! step "Refreshing Debian's package lists with backports" apt_get update || ! has_backports; then
        as_root rm -f "$BACKPORTS_FILE"
        return 1
    fi
    APT_IS_FRESH=1
}

qemu_version() { qemu-system-x86_64 --version 2>/dev/null | sed -n 's/.*version \([0-9]*\.[0-9]*\).*/\1/p' || true; }

qemu_is_recent() { [[ $(qemu_version | cut -d. -f1) -ge 10 ]] 2>/dev/null; }

ensure_qemu() {
    qemu_is_recent && is_installed qemu-utils && return 0
    local release=()
    if [[ $(codename) == bookworm ]]; then
        if enable_backports; then
            release=(-t bookworm-backports)
        else
            [[ -n $(qemu_version) ]] && is_installed qemu-utils && return 0
            warn "bookworm-backports cannot be enabled here: going on with Debian 12's QEMU 7.2 (migrations of guests under emulation need an odd memory size there; Sterna adjusts it)."
        fi
    fi
    ensure_apt_lists
    step "Installing QEMU" apt_get install -y --no-install-recommends "${release[@]}" "${QEMU_PACKAGES[@]}"
    printf '%s\n' "${QEMU_PACKAGES[@]}" >>"$ROOT/target/dev/installed-packages"
}

# --- the versions the tests run side by side ---------------------------------------------------------------------

readonly QEMU_TREE_PACKAGES=(qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu)
# Foreign libraries are taken along, but not these: the machine's own are newer, and its loader is used.
readonly LOADER_PACKAGES="libc6 libc-bin libgcc-s1 libstdc++6 gcc-12-base"

# Exports STERNA_QEMU_72 and STERNA_QEMU_100, each a program that runs that version; one that cannot be had is left out.
ensure_qemu_versions() {
    local trees
    ensure_qemu
    trees=$(qemu_trees)
    if qemu_is_recent; then
        STERNA_QEMU_100=$(command -v qemu-system-x86_64)
        export STERNA_QEMU_100
    else
        warn "QEMU 10 is not to be had here: tests with it are not run"
    fi
    if [[ $(qemu_version) == 7.2 ]]; then
        STERNA_QEMU_72=$(command -v qemu-system-x86_64)
        export STERNA_QEMU_72
    elif [[ -x $trees/7.2/qemu-storage-daemon ]] || step "Unpacking QEMU 7.2 next to the installed one" unpack_qemu_72 "$trees"; then
        export STERNA_QEMU_72="$trees/7.2/qemu-system-x86_64"
    else
        warn "QEMU 7.2 is not to be had here: tests with it are not run"
    fi
    if [[ -n ${STERNA_QEMU_72:-} && -n ${STERNA_QEMU_100:-} ]]; then export STERNA_REQUIRE_QEMU=1; fi
}

# QEMU runs as an unprivileged user, who must be able to reach it: a checkout under /root is closed to them.
qemu_trees() {
    local path="$ROOT/target/qemu"
    mkdir -p "$path"
    as_root setpriv --reuid=65534 --clear-groups test -x "$path" || path=/var/tmp/sterna-qemu
    printf '%s' "$path"
}

# Debian 12's packages, from a private view of apt: nothing is installed, and the machine's own lists stay as they are.
unpack_qemu_72() {
    local tree="$1/7.2.new" view="$1/apt" options
    rm -rf "$tree" "$view" "$1/7.2"
    mkdir -p "$tree" "$view"/{parts,lists/partial,cache/archives/partial,debs}
    derive_source "$(codename)" bookworm >"$view/parts/bookworm.sources"
    [[ -s $view/parts/bookworm.sources ]] || { echo "no entry for $(codename) main in apt's sources" >&2; return 1; }
    options=(-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$view/parts" -o Dir::State::lists="$view/lists"
        -o Dir::Cache="$view/cache" -o Dir::State::status="$view/status" -o Debug::NoLocking=1
        -o APT::Sandbox::User=root -o Acquire::Retries=3)
    : >"$view/status" # As if nothing were installed.
    apt-get "${options[@]}" update
    if [[ $(codename) == bookworm ]]; then
        (cd "$view/debs" && apt-get "${options[@]}" download "${QEMU_TREE_PACKAGES[@]}")
    else
        fetch_with_libraries "$view" "${options[@]}"
    fi
    for package in "$view"/debs/*.deb; do dpkg -x "$package" "$tree"; done
    write_runner "$tree"
    chmod -R go+rX "$tree"
    "$tree/qemu-system-x86_64" --version
    "$tree/qemu-storage-daemon" --version
    mv "$tree" "$1/7.2"
    rm -rf "$view"
}

# On another release the libraries differ, too: everything QEMU depends on is taken.
fetch_with_libraries() {
    local view=$1 name
    shift
    apt-get "$@" install -y --download-only --no-install-recommends "${QEMU_TREE_PACKAGES[@]}"
    mv "$view"/cache/archives/*.deb "$view/debs/"
    for name in $LOADER_PACKAGES; do rm -f "$view/debs/${name}_"*; done
}

# QEMU finds its own data next to its binary, wherever that is; only libraries of another release need a path.
write_runner() {
    local program
    for program in qemu-system-x86_64 qemu-storage-daemon; do
        cat >"$1/$program" <<'RUN'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH="$here/lib/x86_64-linux-gnu:$here/usr/lib/x86_64-linux-gnu" exec "$here/usr/bin/${0##*/}" "$@"
RUN
        chmod 755 "$1/$program"
    done
}
