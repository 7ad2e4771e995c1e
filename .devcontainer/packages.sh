# shellcheck shell=bash
# The Debian packages that the project and its stack need.

# Prints the packages whose commands are missing.
missing_packages() {
    local command package
    while read -r command package; do
        type -P "$command" >/dev/null || echo "$package"
    done <<'COMMANDS'
cc build-essential
make build-essential
pkg-config pkg-config
git git
curl curl
jq jq
nft nftables
ip iproute2
rabbitmq-server rabbitmq-server
docker-registry docker-registry
lighttpd lighttpd
mmdebstrap mmdebstrap
promtool prometheus
shellcheck shellcheck
COMMANDS
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null && type -P psql >/dev/null || echo postgresql
    perl -MFindBin -e1 2>/dev/null || echo perl # all of it, for OpenSSL's build
    # An engine that is there already is used, whoever packaged it.
    if ! engine_answers && ! type -P dockerd >/dev/null; then
        echo docker.io
    elif [[ ! -x /usr/bin/docker ]] && ! docker buildx version >/dev/null 2>&1; then
        echo docker.io # for its command line, which builds with BuildKit by itself
    fi
    [[ -e /etc/ssl/certs/ca-certificates.crt ]] || echo ca-certificates
    [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || echo debian-archive-keyring
}

# Prints the packages that the browser tests need besides.
missing_browser_packages() {
    type -P chromium >/dev/null || echo chromium
    type -P node >/dev/null || echo nodejs
    type -P npm >/dev/null || echo npm
}

# The daemons are started by 'stack.sh up'; their packages must not do it (they
# would take the ports, or hang where there is no systemd).
POLICY=/usr/sbin/policy-rc.d
POLICY_NAME="image-builder: no service starts while packages are installed"

forbid_service_starts() {
    if [[ -e $POLICY ]] && ! grep -qF "$POLICY_NAME" "$POLICY"; then
        mv "$POLICY" "$POLICY.image-builder"
    fi
    printf '#!/bin/sh\n# %s\nexit 101\n' "$POLICY_NAME" >"$POLICY"
    chmod 755 "$POLICY"
    trap allow_service_starts EXIT
}

allow_service_starts() {
    rm -f "$POLICY"
    [[ ! -e $POLICY.image-builder ]] || mv "$POLICY.image-builder" "$POLICY"
    trap - EXIT
}

# Installs what is missing, as one of these functions prints it.
install_packages() { # FUNCTION
    local log
    local -a missing apt
    mapfile -t missing < <("$1" | sort -u)
    if ((${#missing[@]} == 0)); then
        say "install: nothing is missing"
        return
    fi
    need_root
    say "install: ${missing[*]}"
    mkdir -p "$LOG"
    log=$LOG/install.log
    apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120
        -o Dpkg::Options::=--force-confold)
    forbid_service_starts
    if ! {
        "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "${missing[@]}"
    } </dev/null >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        die "apt-get failed; all of its output is in $log"
    fi
    allow_service_starts
    say "install: done in $SECONDS s"
}
