//! The table of all settings. A new one takes one entry here, and is read in the file of its room
//! beside this one, by the method of its name.
//!
//! ```text
//! /// What it means, in Markdown, as the documents have it.
//! name: type of the value = kind of value (values.rs), and what counts where it is not set:
//!     or "the default"                    the method gives a value
//!     otherwise "the default in words"    the method takes the default, and gives a value
//!     unset "what that means"             the method gives an `Option`
//!     unset "what that means" example "a value"   the same; .env.example has it set
//! ```
//!
//! `name` is the variable's in lower case. `name / name_file` is a secret: it can stand in a file as well.
//! After a comma stands an older name.
//!
//! It is only a table: `settings!(of)` gives it to the macro `of`. There is one beside what it makes: the
//! variables and the documents' groups in `table.rs`, the reader's methods in `reader.rs`.

macro_rules! settings { ($of:ident) => { $of! {
    "Broker" {
        /// RabbitMQ, whose queues several workers share. `AMQP_URL` is another name for it; where both are
        /// set in one place, `RABBITMQ_URI` wins.
        rabbitmq_uri / rabbitmq_uri_file, amqp_url / amqp_url_file:
            Secret = AMQP_URI unset "the embedded queue, a file below `DATA_DIR` that one worker has"
                example "amqp://guest:guest@localhost:5672/%2f";
        /// The broker's own `consumer_timeout`, which AMQP does not tell. `JOB_TIMEOUT` must be below it.
        rabbitmq_consumer_timeout: Duration = DURATION or "30m";
        /// Where build requests are published, and come back to be tried again. Its lanes, its bell and its retry
        /// ladder are named after it: `<BUILD_QUEUE>.lane.<lane>`, `<BUILD_QUEUE>.bell`,
        /// `<BUILD_QUEUE>.retry.<delay>`.
        build_queue: String = QUEUE or "image-builder.build";
        /// Lanes (`<BUILD_QUEUE>.lane.<number>`) over which users with many requests are spread, so
        /// that one flood does not stand before the other. A single request waits apart from them anyhow.
        /// At most 64.
        build_lanes: u16 = COUNT or "4";
        /// Failed attempts with their history, until it is decided whether they are tried again.
        fail_queue: String = QUEUE or "image-builder.fail";
        /// Finished builds, good or given up, waiting for their notification. It has a retry ladder
        /// as well, and beside it the outcome ledger, `told.<OUTCOME_QUEUE>`.
        outcome_queue: String = QUEUE or "image-builder.outcome";
        /// Copies of what was given up, without credentials: what `image-builder dead` works on.
        dead_queue: String = QUEUE or "image-builder.dead";
        /// How long those copies are kept, at most 49 days. `0` or `0s`: none are.
        dead_queue_ttl: Option<Duration> = TTL_OR_NONE or "7d";
        /// Gets the body of every notification too, for consumers that prefer AMQP. It grows until
        /// somebody consumes it.
        result_queue: String = QUEUE unset "off";
        /// Fanout exchange on which every worker hears `{"buildID": …, "userID": …}` of builds to cancel. Beside
        /// it is the stream `cancelled.<CANCEL_EXCHANGE>`, which keeps them for those who connect later.
        cancel_exchange: String = QUEUE or "image-builder.cancel";
    }

    "This machine" {
        /// Workspaces and state. Locked: one process has it at a time, so each replica needs its own.
        data_dir: PathBuf = PATH or "./data";
        /// Where `/livez`, `/readyz`, `/metrics` and the API, `/v1`, are served. `0.0.0.0:8080` is every address of
        /// the machine: what a container with a network of its own needs to be reached from outside.
        http_addr: String = ADDRESS or "127.0.0.1:8080";
        /// Whoever asks at `/v1` has to send it, as `Authorization: Bearer …`. They may do everything for all
        /// users.
        api_token / api_token_file: Secret = TOKEN unset "`/v1` is served to this machine alone, but for hooks";
        /// Where hooks of forges are served as well, and nothing else: for a listener that the forges reach and nobody
        /// needs to log in at. See [Hooks](hooks.md).
        hooks_addr: String = ADDRESS unset "hooks are served at `HTTP_ADDR` alone";
        /// Where people reach this service, such as `https://builds.example.com`: commit statuses link there.
        public_url: Url = HTTP_URL unset "commit statuses have no link";
        /// The service that the commands `submit`, `status`, `logs`, `cancel` and `dead` ask, with `API_TOKEN` where
        /// that is set. The worker does not read it.
        image_builder_url: Url = HTTP_URL unset "`http://` and `HTTP_ADDR`";
    }

    "Docker Engine" {
        /// The engine, in Docker's own form: `unix://`, `tcp://`, `http://` or `https://`.
        docker_host: String = ENGINE or "unix:///var/run/docker.sock";
        /// Directory of Docker's own `config.json`, with whose credentials and credential helpers base images are
        /// pulled. Every build can pull with them whatever they open, see [Base images](operations.md#base-images).
        docker_config: PathBuf = PATH unset "`~/.docker`";
        /// Directory with `ca.pem`, `cert.pem` and `key.pem`, for an engine behind TLS.
        docker_cert_path: PathBuf = PATH unset "`DOCKER_CONFIG`";
        /// Any value, `0` as well: a `tcp://` address means TLS. Where TLS is spoken, the engine's
        /// certificate is always checked.
        docker_tls_verify: String = TEXT unset "off";
        /// Network of the builds' `RUN` steps.
        builder_network: String = NETWORK unset "the engine's default";
        /// Memory that a step of a build may hold, swap included, on engines whose BuildKit has such limits (0.31 and
        /// later). See [Limits of builds](operations.md#limits-of-builds), for other engines as well.
        builder_memory: Size = SIZE unset "what the engine's machine has";
        /// Processors that a step of a build may keep busy, such as `2` or `0.5`, on the same engines.
        builder_cpus: f64 = CPUS unset "what the engine's machine has";
        /// Control groups with limits that an operator made on the engine's machine: `/builds/1,/builds/2`. A user's
        /// builds run in one of them.
        builder_cgroups: Cgroups = CGROUPS unset "the engine's own";
        /// Networks that build steps and the sources which a repository names may reach though they are not public:
        /// `10.1.0.0/16,192.168.7.5`. Of build steps it is `image-builder build-network` that goes by it, see
        /// [The network of build steps](operations.md#the-network-of-build-steps).
        builder_allow_cidr: Networks = CIDRS unset "public addresses alone";
        /// Hosts from which a Dockerfile may `ADD` over HTTP and Git under `TENANCY=strict`, such as
        /// `github.com,*.example.com`: the engine looks their names up and follows their redirects by itself, so list
        /// those whose names, and whose redirects, lead nowhere that builds must not reach. Addresses are listed in
        /// `BUILDER_ALLOW_CIDR`.
        builder_allow_hosts: Vec<String> = HOSTS or "github.com,raw.githubusercontent.com";
        /// Whether users are kept apart on the engine. `strict`: an engine that cannot keep them apart builds
        /// nothing. `trusted`: all users are one, and any engine will do.
        tenancy: Tenancy = TENANCY or "strict";
    }

    "BuildKit" {
        /// One `buildkitd` or several, in place of a Docker Engine: `unix:///PATH` or `tcp://HOST:PORT`, separated by
        /// commas. See [Build hosts](operations.md#build-hosts).
        buildkit_host: Vec<String> = BUILDKITS unset "the Docker Engine of `DOCKER_HOST`";
        /// Directory with `ca.pem`, `cert.pem` and `key.pem`, as `buildctl --tlsdir` has it: `tcp://` then means TLS.
        buildkit_tls_dir: PathBuf = PATH unset "no TLS";
        /// Those of the hosts on which no build begins any more.
        buildkit_drain: Vec<String> = BUILDKITS unset "none";
        /// Builds of this worker that a host has at once, before others of its builds go to another host.
        buildkit_builds_per_host: u16 = COUNT otherwise "`BUILDER_CONCURRENCY`, shared out among the hosts";
        /// Gives images the time of their commit, and none of their files a later one, so that the same commit makes
        /// the same digest. It costs writing every layer once more, and needs hosts of `BUILDKIT_HOST`, or an engine
        /// with the containerd image store. See [Reproducible images](operations.md#reproducible-images).
        reproducible_images: bool = FLAG or "false";
        /// How new layers are compressed: `zstd` is smaller and unpacked sooner, and needs Docker 23 or containerd 1.5
        /// where images run. It needs what `REPRODUCIBLE_IMAGES` needs, and so do the next two.
        image_compression: Compression = COMPRESSION or "gzip";
        /// Attaches a record of how an image was built (SLSA): `min`, its sources, or `max`, its steps and build
        /// arguments as well. The image's digest is that of an index then.
        image_provenance: Provenance = PROVENANCE unset "none";
        /// Attaches a list of an image's packages, made by this generator, such as
        /// `docker/buildkit-syft-scanner:stable-1`.
        image_sbom: String = IMAGE unset "none";
        /// Registry in which the build cache of each application is kept for engines that do not have it:
        /// `host[:port][/prefix]`. Needs what `REPRODUCIBLE_IMAGES` needs.
        cache_registry: RegistryUrl = REGISTRY unset "caches stay where they are";
        /// What is kept there: `min`, the layers of the image, or `max`, those of all its stages.
        cache_mode: CacheMode = CACHE_MODE or "min";
    }

    "Network" {
        /// Proxy for what is fetched from `http://` addresses: by the worker itself, and by builds, which get it as a
        /// build argument. `http://user:password@host:port`; the password is kept out of logs. Each of these three
        /// may be written in lower case, which wins. See [Proxies](operations.md#proxies).
        http_proxy / http_proxy_file: ProxyUrl = PROXY unset "no proxy";
        /// The same for `https://` addresses, which it is asked for by `CONNECT`.
        https_proxy / https_proxy_file: ProxyUrl = PROXY unset "no proxy";
        /// What is reached without a proxy: names, with all below them, addresses and networks, such as
        /// `.example.com,10.0.0.0/8`, or `*` for everything. The worker itself adds what is on its own machine.
        no_proxy: String = TEXT unset "all is reached by the proxies";
        /// Certificates in PEM that servers are checked by in place of the system's: forge, registry, managers,
        /// collector, an `amqps://` broker, and a PostgreSQL with `sslmode=verify-full`. See
        /// [TLS](operations.md#tls).
        ssl_cert_file: PathBuf = CERTIFICATES unset "the system's";
        /// Directories with such certificates, a file each, separated by colons; together with `SSL_CERT_FILE`,
        /// where both are set.
        ssl_cert_dir: String = TEXT unset "the system's";
    }

    "Disk" {
        /// Free space below which nothing is built, on the disks of `DATA_DIR` and of a local engine. Of
        /// two values the smaller one counts.
        disk_low_watermark: Watermark = WATERMARK or "5%,2GB";
        /// Free space that pruning aims at; above it, work goes on.
        disk_high_watermark: Watermark = WATERMARK or "10%,4GB";
        /// What images made here and the engine's build cache may hold. What was used longest ago
        /// goes first.
        cache_budget: Size = SIZE or "20GB";
        /// What is kept of repositories below `DATA_DIR`, so that the next build of one fetches only what is new.
        /// Never more than a quarter of what would be free without it. `0`: nothing is kept.
        git_cache_budget: Option<Size> = SIZE_OR_NONE or "5GB";
    }

    "Registry" {
        /// Where images are pushed to. Without a scheme HTTPS is spoken, and plain HTTP to localhost;
        /// `http://` asks for plain HTTP, which the engine has to allow as well (`insecure-registries`).
        registry_url: RegistryUrl = REGISTRY or "localhost:5000";
        /// User of the registry; goes with `REGISTRY_PASSWORD`.
        registry_username: String = TEXT unset "anonymous";
        /// Password of that user.
        registry_password / registry_password_file: Secret = SECRET unset "anonymous";
        /// By what workers know which tags a worker put, of at least 16 characters and the same for all replicas: what
        /// anybody else pushes under a tag is never told as a user's image. See [Tags](safety.md#tags).
        reuse_secret / reuse_secret_file: Secret = LONG_SECRET
            unset "made of the password in `RABBITMQ_URI`, or kept below `DATA_DIR` where there is none";
    }

    "Notifications" {
        /// Gets `image.ready` by HTTP POST.
        container_manager_url / container_manager_url_file: Url =
            HTTP_URL unset "only logged, and sent to `RESULT_QUEUE` where that is set";
        /// Gets `build.failed` and `build.cancelled` by HTTP POST.
        connector_manager_url / connector_manager_url_file: Url =
            HTTP_URL unset "only logged, and sent to `RESULT_QUEUE` where that is set";
        /// Key of the notifications' signatures (Standard Webhooks): `whsec_` and Base64. Several, with
        /// spaces between, while it is changed.
        notifier_secret / notifier_secret_file: SigningKeys = SIGNING_KEYS unset "not signed";
    }

    "Forge" {
        /// GitHub, or a GitHub Enterprise Server. It holds no credential: each request brings its own token.
        github_url: String = FORGE_URL or "https://github.com";
        /// Its API.
        github_api_url: String = FORGE_URL or "https://api.github.com";
        /// GitLab, also one of your own, with its API.
        gitlab_url: String = FORGE_URL or "https://gitlab.com";
        /// A Gitea or Forgejo, with its API.
        gitea_url: String = FORGE_URL unset "requests can name no `gitea`";
        /// Bitbucket Cloud.
        bitbucket_url: String = FORGE_URL or "https://bitbucket.org";
        /// Any other git servers, by commas: requests with the `connector` `git` name repositories there by their
        /// addresses. `host`, `host:port`, or `http://host:port` for one that speaks no TLS. They are trusted like the
        /// other forges: with the token of a request, and at any address.
        git_servers: Servers = SERVERS unset "requests can name no other server";
        /// Asked for a token, at each try, where a request names a credential (`tokenRef`), see
        /// [Credentials by reference](requests-and-notifications.md#credentials-by-reference).
        credentials_url / credentials_url_file: Url = HTTP_URL unset "requests can name no credential";
        /// Id of a GitHub App that makes tokens for requests with the `tokenRef` `github-app`.
        github_app_id: String = TEXT unset "no App";
        /// Private key of that App, as GitHub gives it out: PEM.
        github_app_key / github_app_key_file: AppKey = APP_KEY unset "no App";
    }

    "Hooks" {
        /// Which applications are built after a push, see [Hooks](hooks.md). It is read anew when it changes.
        applications_file: PathBuf = PATH unset "`config/applications.toml`, if it is there";
        /// What GitHub's hooks are signed with, where the application names no secret of its own.
        github_hook_secret / github_hook_secret_file: Secret = SECRET unset "each application needs one of its own";
        /// The same for GitLab's: its secret token, or its signing token (`whsec_…`).
        gitlab_hook_secret / gitlab_hook_secret_file: Secret = SECRET unset "each application needs one of its own";
        /// The same for those of Gitea and Forgejo.
        gitea_hook_secret / gitea_hook_secret_file: Secret = SECRET unset "each application needs one of its own";
    }

    "History" {
        /// PostgreSQL that keeps what is known of builds, `postgres://user:password@host:5432/database`, where
        /// several workers share it: then each answers for every build. No build waits for it.
        database_url / database_url_file: Secret = POSTGRES unset "`history.db` in `DATA_DIR`";
        /// How long a build and its log are kept after the last that happened to it.
        history_ttl: Duration = DURATION or "30d";
        /// What all builds and their compressed logs may hold. The oldest that ended go first.
        history_budget: Size = SIZE or "5GB";
    }

    "How much at once, and for how long" {
        /// Builds in hand at once, those included that are fetched or pushed. A request is taken when a builder
        /// is free for it or about to be, and waits on the broker until then. The last place of those that are over
        /// BUILDER_CONCURRENCY is for a user who has none.
        listener_concurrency: u16 = COUNT otherwise "`CONNECTOR_CONCURRENCY` + `BUILDER_CONCURRENCY` + `PUSHER_CONCURRENCY` + 1";
        /// Sources that are fetched at once.
        connector_concurrency: u16 = COUNT otherwise "the cores, at least 2";
        /// Builds at once. It should fit the engine's cores.
        builder_concurrency: u16 = COUNT otherwise "the cores";
        /// Images that are pushed at once.
        pusher_concurrency: u16 = COUNT otherwise "the cores, at least 2";
        /// Notifications that are sent at once.
        notifier_concurrency: u16 = COUNT otherwise "the cores, at least 4";
        /// Failed attempts that are decided on at once.
        retry_concurrency: u16 = COUNT otherwise "the cores, at least 4";
        /// Builds that one user can have in this worker at once.
        builder_per_user: u16 = COUNT otherwise "`BUILDER_CONCURRENCY`";
        /// A newer request for the same application and ref cancels an older one that does not build yet.
        listener_supersede: bool = FLAG or "false";
        /// Longest time that fetching one source takes.
        connector_timeout: Duration = DURATION or "3m";
        /// Longest time that one build takes.
        builder_timeout: Duration = DURATION or "15m";
        /// Longest time that pushing one image takes.
        pusher_timeout: Duration = DURATION or "5m";
        /// Longest wait for the answer to one notification.
        notifier_timeout: Duration = DURATION or "30s";
        /// From delivery to settled, waiting included. A job that still waits for a stage when less than
        /// half of that stage's time is left goes back to the queue, uncounted. Where it is less than
        /// the three stages' times together, a job whose stages take their time is cut short.
        job_timeout: Duration = DURATION or "25m";
        /// Longest that a request waits without an attempt that counts, from when a worker first had it in
        /// hand: for a service that is out of reach or asks for patience, or for its turn. Then its
        /// user is notified, with the reason `timeout`.
        job_max_age: Duration = DURATION or "24h";
    }

    "Retries" {
        /// Total of attempts of one request.
        retry_max_attempts: u16 = COUNT or "5";
        /// Wait before the second attempt. Notifications that were not taken are sent again at the same
        /// intervals.
        retry_initial_delay: Duration = TTL or "10s";
        /// What each later wait is multiplied by.
        retry_multiplier: f64 = MULTIPLIER or "3";
        /// Longest wait, at most 49 days.
        retry_max_delay: Duration = TTL or "10m";
    }

    "Supervision and shutdown" {
        /// An actor that dies more often than this within `SUPERVISOR_WINDOW` ends the worker.
        supervisor_max_restarts: u16 = COUNT or "5";
        /// The window in which deaths are counted.
        supervisor_window: Duration = DURATION or "30s";
        /// How often each actor writes a line about itself. One that is stuck for as long is replaced.
        supervisor_health_interval: Duration = DURATION or "30s";
        /// How long SIGTERM waits for the jobs in hand before they are handed back to the queue.
        drain_timeout: Duration = DURATION or "60s";
    }

    "Logs and traces" {
        /// What is logged, as in tracing's `EnvFilter`; `info,image_builder::output=off` hides what builds
        /// write. A word that is no level and a filter that logs nothing of image-builder are refused.
        rust_log: EnvFilter = LOG_FILTER or "info";
        /// The form of log lines, which go to the standard error stream.
        log_format: LogFormat = LOG_FORMAT unset "text on a terminal, json elsewhere";
        /// A collector that takes OTLP over HTTP, such as `http://localhost:4318`. This and the following are
        /// OpenTelemetry's own variables.
        otel_exporter_otlp_endpoint: Url = HTTP_URL unset
            "no traces are sent, and a request's `traceparent` is only handed on to its notification";
        /// Further headers of each request to the collector, with percent-encoded values.
        otel_exporter_otlp_headers / otel_exporter_otlp_headers_file: HeaderMap = HEADERS unset "none";
        /// The only one that is spoken; gRPC (port 4317) is not.
        otel_exporter_otlp_protocol: String = PROTOCOL or "http/protobuf";
        /// What the worker is called in traces.
        otel_service_name: String = TEXT unset "`image-builder`";
        /// What else is known of this worker, with percent-encoded values.
        otel_resource_attributes: Pairs = PAIRS unset "none";
    }
}}}

pub(super) use settings;
