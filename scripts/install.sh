#!/bin/bash
# Installs ebpf-fw for real use: code and its own virtual environment in /opt/ebpf-fw, the command in /usr/bin,
# a systemd unit, a configuration. Installing again upgrades; the configuration is never overwritten.
#
# DESTDIR=DIR installs below DIR and touches nothing else (for packages and tests). EBPF_FW_HOME is where the code
# goes in the installed system; scripts/deb.sh chooses another place than /opt.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."

destination=${DESTDIR:-}
destination=${destination%/}
default_home=/opt/ebpf-fw
home=${EBPF_FW_HOME:-$default_home}
target=$destination$home
staging=$target.new
configuration=$destination/etc/ebpf-fw/config.toml
unit=$destination/usr/lib/systemd/system/ebpf-fw.service
command_link=$destination/usr/bin/ebpf-fw

fail() {
    printf 'ebpf-fw: %s\n' "$@" >&2
    exit 1
}

# The state directory is the one thing here that tells whether systemd runs this machine.
systemd_runs() { [[ -z $destination && -d /run/systemd/system ]]; }

# Both would own /usr/bin/ebpf-fw and the unit, and removing one would break the other.
refuse_beside_package() {
    [[ -z $destination ]] && command -v dpkg-query >/dev/null || return 0
    [[ $(dpkg-query -W -f '${db:Status-Status}' ebpf-fw 2>/dev/null) != installed ]] ||
        fail "the Debian package ebpf-fw is installed here; upgrade that, or remove it first: apt-get remove ebpf-fw"
}

copy_code() {
    local part
    rm -rf "$staging"
    install -d "$staging"
    for part in bpf firewall feeds api cli systemd integrations; do
        cp -R --preserve=mode "$part" "$staging/$part"
    done
    for part in pyproject.toml LICENSE LICENSES README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md SECURITY.md docs; do
        [[ ! -e $part ]] || cp -R --preserve=mode "$part" "$staging/$part"
    done
    find "$staging" -name __pycache__ -type d -prune -exec rm -rf {} +
    # As root it runs: whoever may write into the checkout must not write there, and everybody may run the command.
    chmod -R go-w,a+rX "$staging"
}

make_environment() {
    local python=$staging/.venv/bin/python
    /usr/bin/python3 -m venv --system-site-packages "$staging/.venv" ||
        fail "could not make a virtual environment (is the package python3-venv installed?)"
    "$python" -m pip install --quiet --disable-pip-version-check --no-compile --editable "$staging" </dev/null ||
        fail "pip could not install the Python packages; its messages are above. Nothing was changed."
    "$python" -c 'import bcc, fastapi, pyroute2' ||
        fail "the new environment cannot import what the service needs. Nothing was changed."
    rm -rf "$staging"/*.egg-info "$staging/build"
}

# Scripts, and the note of where the editable packages lie, name the staging directory: make it the final one.
relocate_environment() {
    local -a named
    mapfile -t named < <(grep -rlIF --exclude='*.pyc' "$staging" "$staging"/.venv/{pyvenv.cfg,bin,lib/python*/site-packages/*ebpf_fw*})
    sed -i "s|$staging|$home|g" "${named[@]}"
    # By hash, not by time: an archive may change the files' times, and nothing may be compiled anew when it runs.
    /usr/bin/python3 -m compileall -q --invalidation-mode unchecked-hash -s "$staging" -p "$home" \
        "$staging"/{firewall,feeds,api,cli} "$staging"/.venv/lib/python*/site-packages >/dev/null || true
}

# The service may be running from the old directory: the two renames are the whole time it is away.
put_in_place() {
    rm -rf "$target.old"
    [[ ! -e $target ]] || mv "$target" "$target.old"
    mv "$staging" "$target"
    rm -rf "$target.old"
    install -d "$(dirname "$command_link")"
    ln -sfn "$home/.venv/bin/ebpf-fw" "$command_link"
}

install_configuration() {
    install -d -m 0755 "$(dirname "$configuration")"
    if [[ ! -e $configuration ]]; then
        install -m 0644 systemd/config.toml "$configuration"
    elif cmp -s systemd/config.toml "$configuration"; then
        rm -f "$configuration.new"
    else
        install -m 0644 systemd/config.toml "$configuration.new"
        echo "ebpf-fw: kept your $configuration; the new defaults are in $configuration.new"
    fi
}

# Its members may use a Unix socket of the API. A package makes it when it is installed.
make_group() {
    [[ -z $destination ]] || return 0
    getent group ebpf-fw >/dev/null || groupadd --system ebpf-fw ||
        echo "ebpf-fw: could not make the group ebpf-fw; only root may use a Unix socket of the API"
}

install_unit() {
    install -d "$(dirname "$unit")"
    sed "s|$default_home|$home|g" systemd/ebpf-fw.service >"$unit"
    chmod 0644 "$unit"
    install -d -m 0700 "$destination/var/lib/ebpf-fw"
}

# Where fail2ban is, or into a package. One that somebody changed stays.
install_fail2ban_action() {
    local action=$destination/etc/fail2ban/action.d/ebpf-fw.conf shipped
    [[ -n $destination || -d $(dirname "$action") ]] || return 0
    shipped=$(sed "s|$default_home|$home|g" integrations/fail2ban/action.d/ebpf-fw.conf)
    install -d "$(dirname "$action")"
    if [[ -e $action && $(cat "$action") != "$shipped" ]]; then
        printf '%s\n' "$shipped" >"$action.new"
        echo "ebpf-fw: kept your $action; the new one is in $action.new"
        return 0
    fi
    printf '%s\n' "$shipped" >"$action"
    chmod 0644 "$action"
    rm -f "$action.new"
}

say_what_is_next() {
    echo "ebpf-fw: installed in $target"
    if ! systemd_runs; then
        echo "ebpf-fw: systemd does not run here; start the service with: ebpf-fw serve --config /etc/ebpf-fw/config.toml"
        return
    fi
    systemctl daemon-reload
    if systemctl is-active --quiet ebpf-fw; then
        echo "ebpf-fw: the old version is still running; change to the new one with: systemctl restart ebpf-fw"
    else
        echo "ebpf-fw: name your interfaces in /etc/ebpf-fw/config.toml, then: systemctl enable --now ebpf-fw"
    fi
}

main() {
    [[ -n $destination || $EUID -eq 0 ]] || fail "make install needs root: sudo make install"
    [[ -z $destination || $destination == /* ]] || fail "DESTDIR must be an absolute path, not '$destination'"
    refuse_beside_package
    scripts/packages.sh runtime
    trap 'rm -rf "$staging"' EXIT
    copy_code
    make_environment
    relocate_environment
    put_in_place
    install_configuration
    make_group
    install_unit
    install_fail2ban_action
    [[ -n $destination ]] || say_what_is_next
}

main "$@"
