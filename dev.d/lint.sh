# ./dev lint: format, layers, words, scripts, clippy, sizes. Sourced by ./dev.

# Each check is one function; the tests count each as one test. Clippy comes last: it is the only slow one.
readonly LINT_CHECKS=(check_format check_arrows check_words check_scripts check_clippy)
readonly FILE_LINES_AIM=400 FN_LINES_MAX=70

lint_main() {
    local failed=0 check
    check_cargo
    ensure_packages "$PACKAGES_TEST" "$PACKAGES_BUILD"
    for check in "${LINT_CHECKS[@]}"; do
        live "$check" || failed=$((failed + 1))
    done
    report_sizes
    ((failed == 0)) || die "$failed of ${#LINT_CHECKS[@]} checks failed"
    say "lint: all ${#LINT_CHECKS[@]} checks hold"
}

check_format() {
    cargo fmt --all --check
    cargo fmt --manifest-path guest/workload/Cargo.toml --check
    say "format: as rustfmt has it"
}

check_arrows() { "$ROOT/dev.d/arrows"; }

check_clippy() { cargo clippy --locked --workspace --all-targets -- -D warnings; }

check_scripts() {
    local scripts=(dev dev.d/*.sh dev.d/arrows .ci/run guest/tiny/{init,nic-added,on-uevent,udhcpc.script})
    # SC1091: sourced parts are checked themselves. SC2034: constants of one part are used in another.
    # SC3043 and kin do not arise: the guest's scripts are checked as dash, which busybox's shell is near to.
    shellcheck --shell=bash --exclude=SC1091,SC2034 "${scripts[@]:0:$((${#scripts[@]} - 4))}"
    shellcheck --shell=dash --exclude=SC2154 "${scripts[@]: -4}"
    say "scripts: shellcheck has no complaints"
}

# Nothing in the project may depend on the machine it was written on, or name a package registry's host: where
# packages come from is decided by the configuration of each machine.
check_words() {
    local patterns found
    patterns=$(printf '%s\n' "$ROOT" '/wor[k]/' 'https?://[^ ]*(deb\.debian\.or[g]|security\.debian\.or[g]|static\.crates\.i[o]|index\.crates\.i[o]|registry\.npmjs\.or[g])')
    found=$(project_files | grep -vx 'Cargo.lock' | xargs -d '\n' grep -nEI "$patterns" 2>/dev/null || true)
    if [[ -n $found ]]; then
        printf '%s\n' "$found"
        echo "words: paths of this machine or hosts of registries are named above"
        return 1
    fi
    say "words: no paths of this machine, no hosts of registries"
}

project_files() { git -C "$ROOT" ls-files --cached --others --exclude-standard; }

# A report, not a check: the aims are in the style guide.
report_sizes() {
    local file lines
    project_files | grep '\.rs$' | while IFS= read -r file; do
        [[ -e $file ]] || continue
        lines=$(wc -l <"$file")
        ((lines <= FILE_LINES_AIM)) || say "size: $file has $lines lines (aim: $FILE_LINES_AIM)"
        long_functions "$file"
    done
}

# Relies on rustfmt: a function ends at the brace with the indentation of its first line.
long_functions() {
    awk -v max="$FN_LINES_MAX" -v file="$1" '
        match($0, /^ *(pub(\([a-z]+\))? )?(const )?(async )?(unsafe )?fn [a-z_0-9]+/) && !inside {
            inside = 1; start = NR; match($0, /^ */); indent = RLENGTH
            name = $0; sub(/.*fn /, "", name); sub(/[^a-z_0-9].*/, "", name)
            if ($0 ~ /[;}]$/) inside = 0
            next
        }
        inside && match($0, /^ *}$/) && RLENGTH == indent + 1 {
            inside = 0
            if (NR - start + 1 > max) printf "size: %s:%d fn %s has %d lines (most: %d)\n", file, start, name, NR - start + 1, max
        }
        inside && /;$/ && match($0, /^ */) && RLENGTH == indent { inside = 0 }
    ' "$1"
}
