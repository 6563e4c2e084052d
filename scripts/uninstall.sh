#!/bin/bash
# Removes what install.sh installed. The service is stopped first, and its filters are taken off the interfaces.
# Configuration and state stay, unless PURGE=1.
#
# DESTDIR=DIR removes below DIR and touches nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

destination=${DESTDIR:-}
destination=${destination%/}
home=/opt/ebpf-fw
command_link=$destination/usr/bin/ebpf-fw
configuration=$destination/etc/ebpf-fw
state=$destination/var/lib/ebpf-fw
cache=$destination/var/cache/ebpf-fw
runtime=$destination/run/ebpf-fw

fail() {
    printf 'ebpf-fw: %s\n' "$@" >&2
    exit 1
}

# What lies in /usr is the package's then, and /opt has nothing of ours.
refuse_package() {
    command -v dpkg-query >/dev/null || return 0
    [[ $(dpkg-query -W -f '${db:Status-Status}' ebpf-fw 2>/dev/null) != installed ]] ||
        fail "ebpf-fw was installed as a Debian package: apt-get remove ebpf-fw (or purge)"
}

stop_service() {
    [[ -d /run/systemd/system ]] || return 0
    systemctl disable --now --quiet ebpf-fw 2>/dev/null || true
}

remove_filters() {
    /usr/bin/python3 scripts/remove_filters.py "$configuration/config.toml" ||
        fail "filters may still be attached; see: ip link, tc filter. Nothing was removed from the disk."
}

remove_code() {
    rm -f "$destination/usr/lib/systemd/system/ebpf-fw.service"
    # A command of the same name that leads elsewhere is not ours.
    [[ $(readlink "$command_link" 2>/dev/null) != "$home"/* ]] || rm -f "$command_link"
    rm -rf "$destination$home" "$destination$home.new" "$destination$home.old" "$cache" "$runtime"
    [[ -n $destination || ! -d /run/systemd/system ]] || systemctl daemon-reload
}

remove_fail2ban_action() {
    local action=$destination/etc/fail2ban/action.d/ebpf-fw.conf
    rm -f "$action.new"
    if [[ ${PURGE:-} == 1 ]] || cmp -s integrations/fail2ban/action.d/ebpf-fw.conf "$action"; then
        rm -f "$action"
    fi
}

remove_data() {
    if [[ ${PURGE:-} == 1 ]]; then
        rm -rf "$configuration" "$state"
        [[ -n $destination ]] || ! getent group ebpf-fw >/dev/null || groupdel ebpf-fw || true
        echo "ebpf-fw: removed, with configuration and state"
        return
    fi
    echo "ebpf-fw: removed. Kept: $configuration and $state (PURGE=1 removes these as well)"
}

main() {
    [[ -n $destination || $EUID -eq 0 ]] || fail "make uninstall needs root: sudo make uninstall"
    [[ -z $destination || $destination == /* ]] || fail "DESTDIR must be an absolute path, not '$destination'"
    if [[ -z $destination ]]; then
        refuse_package
        stop_service
        remove_filters
    fi
    remove_code
    remove_fail2ban_action
    remove_data
}

main "$@"
