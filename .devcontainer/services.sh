# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153,SC2154 # names shared with the other files
# The services of the stack. Each one has start_X (returns at once), ready_X (a
# probe that asks the service itself) and about_X (where it is reached). One
# that answers already and was not started here is used as it is.

SERVICES=(docker rabbitmq postgres registry auth-registry git)

AMQP_PORT=5672
MANAGEMENT_PORT=15672
POSTGRES_PORT=5432
REGISTRY_PORT=5000
AUTH_REGISTRY_PORT=5001
GIT_PORT=3080

RABBITMQ_NODE=rabbit@localhost # fixed: the data belongs to a node's name, and hosts get renamed
POSTGRES_URL=postgres://builder:builder-secret@127.0.0.1:$POSTGRES_PORT/postgres
REGISTRY_USER=builder
REGISTRY_PASSWORD=builder-secret
GIT_URL=http://127.0.0.1:$GIT_PORT
GIT_ROOT=$STATE/git
GIT_TOKEN=good-token

start_service() { # NAME
    local name=$1 function=${1//-/_}
    if is_ours "$name"; then return; fi
    if "ready_$function"; then
        say "$name: using the one that answers at $("about_$function")"
        return
    fi
    "start_$function"
}

await_service() { # NAME
    local name=$1 function=${1//-/_}
    # An engine with thousands of images reads them all before it answers: 31 s with 3,300.
    "ready_$function" || await_ready "$name" 180 "ready_$function"
    describe_service "$name" >&2
}

stop_service() { # NAME
    local running='' child
    ! is_ours "$1" || running=yes
    # PostgreSQL takes the usual signal for a wish to wait until all its clients have gone.
    [[ $1 != postgres || ! $running ]] || kill -INT "$pid"
    # What was started is unshare, which hears no signals; the service is its child.
    if [[ $1 == newer-* && $running ]]; then
        read -r child _ <"/proc/$pid/task/$pid/children" || true # there is no newline
        [[ ! $child ]] || kill -TERM "$child" || true
    fi
    stop_daemon "$1" 30 # also clears away what is left of one that was killed
    [[ ! $running ]] || say "$1: stopped"
    [[ $1 != rabbitmq ]] || stop_daemon epmd 5
}

describe_service() { # NAME
    local name=$1 function=${1//-/_} state=up origin="not started here"
    if is_ours "$name"; then origin="pid $pid"; fi
    if ! "ready_$function"; then
        state=down
        [[ $origin != pid* ]] || state=starting
    fi
    [[ $state != down ]] || origin="log: $LOG/$name.log"
    printf '%-24s %-8s %s (%s)\n' "$name" "$state" "$("about_$function")" "$origin"
    [[ $state == up ]]
}

# A port that something else has is said in so many words.
claim_port() { # NAME PORT
    ! port_taken "$2" || die "$1: port $2 is taken by something else"
}

# --- Docker Engine ------------------------------------------------------------

DEFAULT_SOCKET=/var/run/docker.sock
ENGINE=${DOCKER_HOST:-unix://$DEFAULT_SOCKET}

# The HTTP API of an engine on a socket.
engine_api() { # PATH [CURL OPTION...]
    local path=$1
    shift
    curl -sS --unix-socket "${ENGINE#unix://}" "$@" "http://engine$path"
}

engine_answers() {
    case $ENGINE in
        unix://*) [[ -S ${ENGINE#unix://} ]] && engine_api /_ping -f -m 5 ;;
        *) type -P docker && timeout 10 docker version ;;
    esac >/dev/null 2>&1
}

ready_docker() { engine_answers; }
about_docker() { echo "$ENGINE"; }

# Makes control groups usable where nothing has set them up.
prepare_cgroups() {
    local root=/sys/fs/cgroup
    if ! grep -q " $root" /proc/mounts; then
        mount -t cgroup2 cgroup2 "$root" || say "docker: no control groups are mounted, and cannot be"
    elif [[ -e $root/cgroup.controllers && -e $root/cgroup.type ]]; then
        # Inside a container on cgroup v2: a group that has processes of its own
        # cannot hand controllers down, so they move aside first.
        mkdir -p "$root/init"
        xargs -rn1 <"$root/cgroup.procs" >"$root/init/cgroup.procs" 2>/dev/null || true
        sed -e 's/ / +/g' -e 's/^/+/' "$root/cgroup.controllers" >"$root/cgroup.subtree_control" || true
    fi
}

start_docker() {
    [[ $ENGINE == unix://$DEFAULT_SOCKET ]] || die "docker: DOCKER_HOST is $ENGINE, and nothing answers there"
    prepare_cgroups
    # Left behind by a machine that was switched off: the numbers in these may
    # by now be those of other processes, which dockerd would wait for.
    rm -f /var/run/docker.pid "$RUN/docker.engine" "$DEFAULT_SOCKET"
    local left=/var/run/docker/containerd/containerd.pid
    if [[ -e $left && $(cat "/proc/$(<"$left")/comm" 2>/dev/null) != containerd ]]; then rm -f "$left"; fi
    start_daemon docker dockerd --host "unix://$DEFAULT_SOCKET" --pidfile "$RUN/docker.engine"
}

# --- RabbitMQ -----------------------------------------------------------------

# Speaks first, as AMQP wants it, and is content with any method frame.
amqp_answers() {
    local byte
    byte=$(
        exec 3<>"/dev/tcp/127.0.0.1/$AMQP_PORT" || exit 1
        printf 'AMQP\0\0\011\001' >&3
        timeout 2 head -c 1 <&3 | od -An -tu1
    ) || return 1
    [[ ${byte//[[:space:]]/} == 1 ]]
} 2>/dev/null

ready_rabbitmq() {
    amqp_answers || return 1
    ! is_ours rabbitmq || curl -fs -m 5 -o /dev/null -u guest:guest "http://127.0.0.1:$MANAGEMENT_PORT/api/whoami"
}

about_rabbitmq() { echo "amqp://guest:guest@localhost:$AMQP_PORT, management on $MANAGEMENT_PORT"; }

start_rabbitmq() {
    local home=$STATE/rabbitmq
    claim_port rabbitmq "$AMQP_PORT"
    claim_port rabbitmq "$MANAGEMENT_PORT"
    mkdir -p "$home"
    {
        echo "listeners.tcp.1 = 127.0.0.1:$AMQP_PORT"
        ! grep -q '^0\{31\}1 ' /proc/net/if_inet6 2>/dev/null || echo "listeners.tcp.2 = ::1:$AMQP_PORT"
        echo "management.tcp.ip = 127.0.0.1"
        echo "management.tcp.port = $MANAGEMENT_PORT"
        echo "log.console = true"
        echo "log.file = false"
    } >"$ETC/rabbitmq.conf"
    echo '[rabbitmq_management].' >"$ETC/rabbitmq_plugins"
    chown -R rabbitmq:rabbitmq "$home"
    local -a as_rabbitmq=(setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups
        env HOME=/var/lib/rabbitmq LC_ALL=C.UTF-8)
    # The name service of Erlang nodes would outlive the broker: it is a daemon of its own here.
    epmd -names >/dev/null 2>&1 || start_daemon epmd "${as_rabbitmq[@]}" ERL_EPMD_ADDRESS=127.0.0.1 epmd
    start_daemon rabbitmq "${as_rabbitmq[@]}" \
        RUNNING_UNDER_SYSTEMD=1 \
        RABBITMQ_NODENAME="$RABBITMQ_NODE" \
        RABBITMQ_MNESIA_BASE="$home" \
        RABBITMQ_LOG_BASE="$home" \
        RABBITMQ_CONFIG_FILE="$ETC/rabbitmq.conf" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$ETC/rabbitmq_plugins" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}" \
        /usr/lib/rabbitmq/bin/rabbitmq-server
}

# --- PostgreSQL ---------------------------------------------------------------

ready_postgres() { PGCONNECT_TIMEOUT=5 psql -qAtX "$POSTGRES_URL" -c 'SELECT 1' >/dev/null 2>&1; }
about_postgres() { echo "$POSTGRES_URL"; }

start_postgres() {
    local home=$STATE/postgres programs
    local -a as_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups env HOME=/ LC_ALL=C.UTF-8)
    claim_port postgres "$POSTGRES_PORT"
    if [[ ! -e $home/PG_VERSION ]]; then
        programs=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
        rm -rf "$home"
        install -d -o postgres -g postgres -m 700 "$home"
        echo builder-secret >"$ETC/postgres-password"
        "${as_postgres[@]}" "$programs/initdb" -D "$home" -U builder -A scram-sha-256 \
            --pwfile="$ETC/postgres-password" -E UTF8 --no-sync >"$LOG/postgres-initdb.log" 2>&1 ||
            die "postgres: no data directory could be made; see $LOG/postgres-initdb.log"
    fi
    # Written by one version, and read by the same.
    programs=/usr/lib/postgresql/$(<"$home/PG_VERSION")/bin
    # A machine that loses power loses nothing here that anybody needs: nothing waits for the disk.
    start_daemon postgres "${as_postgres[@]}" "$programs/postgres" -D "$home" -p "$POSTGRES_PORT" \
        -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c max_connections=300
}

# --- Registries ---------------------------------------------------------------

ready_registry() { curl -fs -m 5 -o /dev/null "http://127.0.0.1:$REGISTRY_PORT/v2/"; }
about_registry() { echo "localhost:$REGISTRY_PORT"; }
start_registry() { run_registry registry "$REGISTRY_PORT"; }

ready_auth_registry() {
    curl -fs -m 5 -o /dev/null -u "$REGISTRY_USER:$REGISTRY_PASSWORD" "http://127.0.0.1:$AUTH_REGISTRY_PORT/v2/"
}
about_auth_registry() { echo "localhost:$AUTH_REGISTRY_PORT as $REGISTRY_USER:$REGISTRY_PASSWORD"; }
start_auth_registry() {
    # Registries take bcrypt only, which the C library knows.
    local salt hash
    salt=$(head -c 64 /dev/urandom | base64 -w0 | tr -dc 'A-Za-z0-9' | cut -c1-22)
    hash=$(perl -e 'print crypt($ARGV[0], "\$2y\$05\$$ARGV[1]")' "$REGISTRY_PASSWORD" "${salt:0:21}u")
    [[ $hash == \$2y\$* ]] || die "auth-registry: crypt(3) of this machine knows no bcrypt"
    echo "$REGISTRY_USER:$hash" >"$ETC/registry-users"
    run_registry auth-registry "$AUTH_REGISTRY_PORT" "
auth:
  htpasswd:
    realm: image-builder
    path: $ETC/registry-users"
}

run_registry() { # NAME PORT [MORE CONFIGURATION]
    claim_port "$1" "$2"
    mkdir -p "$STATE/$1"
    cat >"$ETC/$1.yml" <<CONFIG
version: 0.1
log:
  level: info
storage:
  filesystem:
    rootdirectory: $STATE/$1
  delete:
    enabled: true
http:
  addr: 127.0.0.1:$2
  secret: $1-of-one-machine${3:-}
CONFIG
    start_daemon "$1" docker-registry serve "$ETC/$1.yml"
}

# --- git over HTTP ------------------------------------------------------------

ready_git() { [[ $(curl -fs -m 5 "$GIT_URL/-/ready") == ready ]]; }
about_git() { echo "$GIT_URL/OWNER/NAME.git, token of private/*: $GIT_TOKEN"; }

start_git() {
    local exec_path
    claim_port git "$GIT_PORT"
    exec_path=$(git --exec-path)
    [[ -x $exec_path/git-http-backend ]] || exec_path=/usr/lib/git-core
    mkdir -p "$GIT_ROOT" "$STATE/tmp" "$ETC/git-home"
    cp "$here/git-backend.sh" "$ETC/git-backend.sh"
    git config -f "$ETC/git-home/.gitconfig" --replace-all safe.directory '*'
    cat >"$ETC/lighttpd.conf" <<CONFIG
server.modules = ( "mod_setenv", "mod_alias", "mod_cgi", "mod_accesslog" )
server.bind = "127.0.0.1"
server.port = $GIT_PORT
server.document-root = "$GIT_ROOT"
server.upload-dirs = ( "$STATE/tmp" )
server.stream-response-body = 2
accesslog.filename = "$LOG/git-access.log"
alias.url = ( "/" => "$ETC/git-backend.sh/" )
cgi.assign = ( "git-backend.sh" => "/bin/sh" )
setenv.set-environment = (
    "PATH" => "/usr/local/bin:/usr/bin:/bin",
    "HOME" => "$ETC/git-home",
    "GIT_HTTP_BACKEND" => "$exec_path/git-http-backend",
    "GIT_PROJECT_ROOT" => "$GIT_ROOT",
    "GIT_HTTP_EXPORT_ALL" => "1",
    "GIT_TOKEN" => "$GIT_TOKEN"
)
CONFIG
    start_daemon git lighttpd -D -f "$ETC/lighttpd.conf"
}

create_repository() { # OWNER/NAME [DIR]
    [[ ${1:-} =~ ^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$ ]] || die "usage: stack.sh repo OWNER/NAME [DIR]"
    local name=${1%.git}
    local bare=$GIT_ROOT/$name.git
    if [[ ! -e $bare/HEAD ]]; then
        git init -q --bare -b main "$bare"
        # As GitHub: any commit that a branch or tag reaches can be asked for.
        git -C "$bare" config uploadpack.allowTipSHA1InWant true
        git -C "$bare" config uploadpack.allowReachableSHA1InWant true
        git -C "$bare" config uploadpack.allowFilter true
    fi
    if [[ ${2:-} ]]; then
        git -C "$2" push -q --force "$bare" 'refs/heads/*:refs/heads/*' 'refs/tags/*:refs/tags/*'
        local head
        if head=$(git -C "$2" symbolic-ref -q HEAD); then git -C "$bare" symbolic-ref HEAD "$head"; fi
    fi
    echo "$GIT_URL/$name.git"
}
