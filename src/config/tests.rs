use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::Queue;

use super::table::Variable;
use super::*;
use crate::engine::docker::Tenancy;

fn vars(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const URI: (&str, &str) = ("RABBITMQ_URI", "amqp://guest:guest@localhost:5672/%2f");

#[test]
fn nothing_has_to_be_set() {
    let config = Config::read(vars(&[])).expect("a good configuration");
    assert!(config.broker.rabbitmq.is_none(), "the embedded queue is the default");
    assert_eq!(config.registry.url.to_string(), "localhost:5000");
    assert_eq!(config.pipeline.retry.max_attempts, 5);
    assert_eq!(config.pipeline.job_timeout, Duration::from_secs(25 * 60));
    assert_eq!(config.broker.dead_ttl, Some(Duration::from_secs(7 * 24 * 3600)));
}

#[test]
fn outcomes_cannot_be_published_to_a_queue_of_no_broker() {
    let errors = Config::read(vars(&[("RESULT_QUEUE", "results")])).expect_err("nobody reads it");
    assert!(errors.to_string().starts_with("RESULT_QUEUE: needs RABBITMQ_URI"), "{errors}");
}

#[test]
fn every_bad_value_is_named_at_once() {
    let errors = Config::read(vars(&[
        ("BUILDER_CONCURRENCY", "0"),
        ("BUILDER_TIMEOUT", "soon"),
        ("BUILDER_NETWORK", "mine"),
        ("TENANCY", "none"),
        ("GITHUB_URL", "https://me:hunter2@example.com"),
        ("CONTAINER_MANAGER_URL", "hunter2"),
        ("DOCKER_HOST", "nowhere"),
        ("HTTP_ADDR", "8080x"),
        ("RETRY_MULTIPLIER", "0.5"),
        ("JOB_TIMEOUT", "31m"),
        ("DISK_LOW_WATERMARK", "much"),
        ("DISK_HIGH_WATERMARK", "101%"),
        ("CACHE_BUDGET", "5%"),
    ]))
    .expect_err("a bad configuration");
    for name in [
        "BUILDER_CONCURRENCY",
        "BUILDER_TIMEOUT",
        "BUILDER_NETWORK",
        "TENANCY",
        "GITHUB_URL",
        "CONTAINER_MANAGER_URL",
        "DOCKER_HOST",
        "HTTP_ADDR",
        "RETRY_MULTIPLIER",
        "JOB_TIMEOUT",
        "DISK_LOW_WATERMARK",
        "DISK_HIGH_WATERMARK",
        "CACHE_BUDGET",
    ] {
        assert!(
            errors.0.iter().any(|line| line.starts_with(&format!("{name}: "))),
            "{name}: {errors}"
        );
    }
    assert!(!errors.to_string().contains("hunter2"));
}

#[test]
fn a_job_that_may_be_cut_short_by_its_time_is_warned_of_and_no_error() {
    let of = |job: &str| {
        let stages = [("CONNECTOR_TIMEOUT", "1m"), ("BUILDER_TIMEOUT", "5m")];
        let rest = [("PUSHER_TIMEOUT", "2m"), ("JOB_TIMEOUT", job)];
        Config::read(vars(&[&[URI], &stages[..], &rest].concat())).expect("good").warnings()
    };
    assert_eq!(of("8m"), [""; 0]);
    let [warning] = &of("7m 59s")[..] else { panic!("one warning") };
    for part in
        ["JOB_TIMEOUT: 7m 59s", "CONNECTOR_TIMEOUT", "BUILDER_TIMEOUT", "PUSHER_TIMEOUT", "(8m)"]
    {
        assert!(warning.contains(part), "{part}: {warning}");
    }
    assert_eq!(Config::read(vars(&[URI])).expect("good").warnings(), [""; 0]);
}

#[test]
fn a_worker_that_takes_fewer_builds_than_it_has_builders_is_warned_of() {
    let of = |listener: &str| {
        let pairs = [URI, ("LISTENER_CONCURRENCY", listener), ("BUILDER_CONCURRENCY", "3")];
        Config::read(vars(&pairs)).expect("good").warnings()
    };
    assert_eq!(of("3"), [""; 0]);
    let [warning] = &of("2")[..] else { panic!("one warning") };
    assert!(warning.starts_with("LISTENER_CONCURRENCY: "), "{warning}");
    assert!(warning.contains("BUILDER_CONCURRENCY"), "{warning}");
}

#[test]
fn users_are_kept_apart_unless_an_operator_says_that_they_are_one() {
    let of = |pairs: &[_]| Config::read(vars(&[&[URI], pairs].concat())).expect("good");
    assert_eq!(of(&[]).engine.builds.tenancy, Tenancy::Strict);
    assert_eq!(of(&[("TENANCY", "trusted")]).engine.builds.tenancy, Tenancy::Trusted);
    for (name, value) in [("TENANCY", "trusted"), ("BUILDER_NETWORK", "host")] {
        let [warning] = &of(&[(name, value)]).warnings()[..] else { panic!("one warning") };
        assert!(warning.starts_with(&format!("{name}: with `{value}`")), "{warning}");
    }
}

#[test]
fn what_steps_reach_is_looked_at_on_the_bridge_of_an_engine_that_keeps_users_apart() {
    for (settings, is_looked_at) in [
        (&[][..], true),
        (&[("TENANCY", "trusted")], false),
        (&[("BUILDER_NETWORK", "host")], false),
        (&[("BUILDKIT_HOST", "tcp://buildkit:1234")], false),
    ] {
        let config = Config::read(vars(settings)).expect("a good configuration");
        assert_eq!(config.keeps_network_apart(), is_looked_at, "{settings:?}");
    }
}

#[test]
fn the_low_watermark_is_below_the_high_one() {
    let config = Config::read(vars(&[URI])).expect("good");
    assert_eq!(config.disk.low.of(10_000_000_000), 500_000_000);
    assert_eq!(config.disk.high.of(1_000_000_000_000), 4_000_000_000);
    assert_eq!(config.disk.budget.0, 20_000_000_000);

    let marks = |low, high| {
        Config::read(vars(&[URI, ("DISK_LOW_WATERMARK", low), ("DISK_HIGH_WATERMARK", high)]))
    };
    assert!(marks("1GiB", "30%").is_ok());
    let error = marks("3GB", "3GB").expect_err("equal").to_string();
    assert!(error.starts_with("DISK_LOW_WATERMARK: `3.0 GB` must be below"), "{error}");
}

#[test]
fn a_secret_may_stand_in_a_file_and_only_there() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "\u{feff}hunter2\r\n").expect("written");
    let path = file.path().to_string_lossy().into_owned();
    let config =
        Config::read(vars(&[URI, ("REGISTRY_USERNAME", "me"), ("REGISTRY_PASSWORD_FILE", &path)]))
            .expect("good");
    let credentials = config.registry.credentials.as_ref().expect("a username and a password");
    assert_eq!(credentials.password, Secret::new("hunter2"));
    assert!(!format!("{config:?}").contains("hunter2"));

    let both = vars(&[
        URI,
        ("REGISTRY_USERNAME", "me"),
        ("REGISTRY_PASSWORD", "x"),
        ("REGISTRY_PASSWORD_FILE", &path),
    ]);
    assert!(Config::read(both).expect_err("two").to_string().starts_with("REGISTRY_PASSWORD: "));
}

#[test]
fn an_empty_value_counts_as_unset() {
    let config =
        Config::read(vars(&[URI, ("REGISTRY_URL", ""), ("RESULT_QUEUE", " ")])).expect("good");
    assert_eq!(config.registry.url.to_string(), "localhost:5000");
    assert_eq!(config.broker.topology.queue(Queue::Result), None);
}

/// What the worker finds with these variables in its file and in the real environment.
fn found(file: &[(&str, &str)], real: &[(&str, &str)]) -> Environment {
    let real = real.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let lines = file.iter().enumerate().map(|(at, (name, _))| ((*name).to_owned(), at + 1));
    let file = EnvFile { variables: vars(file), lines: lines.collect(), ..EnvFile::default() };
    Environment::of(real, file)
}

#[test]
fn a_real_variable_wins_over_the_other_names_of_its_value_in_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let uri_file = file("uri", "amqp://real-file/%2f\n");
    let password = file("password", "real-password");
    let here = ("RABBITMQ_URI", "amqp://file/%2f");

    let uri_of = |in_file: &[(&str, &str)], real: &[(&str, &str)]| {
        let config = found(in_file, real).config().expect("good");
        let rabbitmq = config.broker.rabbitmq.expect("its address is set");
        (rabbitmq.uri_variable, rabbitmq.uri.expose().to_owned())
    };
    let of = |name: &str, uri: &str| (name.to_owned(), uri.to_owned());
    assert_eq!(uri_of(&[here], &[]), of("RABBITMQ_URI", "amqp://file/%2f"));
    let real = ("AMQP_URL", "amqp://real/%2f");
    assert_eq!(uri_of(&[here], &[real]), of("AMQP_URL", "amqp://real/%2f"));
    let real = ("RABBITMQ_URI_FILE", uri_file.as_str());
    assert_eq!(uri_of(&[here], &[real]), of("RABBITMQ_URI_FILE", "amqp://real-file/%2f"));
    let in_file = ("AMQP_URL_FILE", uri_file.as_str());
    assert_eq!(uri_of(&[in_file], &[here]), of("RABBITMQ_URI", "amqp://file/%2f"));
    // What is empty is not set.
    assert_eq!(uri_of(&[here], &[("AMQP_URL", " ")]), of("RABBITMQ_URI", "amqp://file/%2f"));

    let registry = [("REGISTRY_USERNAME", "me"), ("REGISTRY_PASSWORD", "file-password")];
    let config =
        found(&[&[here], &registry[..]].concat(), &[("REGISTRY_PASSWORD_FILE", &password)])
            .config()
            .expect("good");
    let credentials = config.registry.credentials.expect("a password");
    assert_eq!(credentials.password, Secret::new("real-password"));

    // In one place, two values are one too many.
    let user = ("REGISTRY_USERNAME", "me");
    let both = [user, ("REGISTRY_PASSWORD", "x"), ("REGISTRY_PASSWORD_FILE", &password)];
    let uris = [("RABBITMQ_URI", "amqp://x/%2f"), ("RABBITMQ_URI_FILE", &uri_file)];
    for (errors, name) in [
        (found(&both, &[here]).config(), "REGISTRY_PASSWORD"),
        (found(&[here], &both).config(), "REGISTRY_PASSWORD"),
        (found(&uris, &[]).config(), "RABBITMQ_URI"),
        (found(&[here], &uris).config(), "RABBITMQ_URI"),
    ] {
        let line = format!("{name}: set either {name} or {name}_FILE, not both");
        assert_eq!(errors.expect_err("two values").0, [line]);
    }
}

#[test]
fn a_variable_of_ours_that_is_no_text_is_named_and_others_do_not_matter() {
    use std::os::unix::ffi::OsStringExt;
    let bad = || OsString::from_vec(b"caf\xe9".to_vec());
    let foreign =
        [(OsString::from("LS_COLORS"), bad()), (bad(), bad()), ("data_dir".into(), bad())];
    let good = Environment::of(foreign, EnvFile { variables: vars(&[URI]), ..EnvFile::default() })
        .config()
        .expect("good");
    assert_eq!(good.data_dir, Path::new("./data"));

    let names = ["AMQP_URL", "BUILDER_TIMEOUT", "RUST_LOG", "NOTIFIER_SECRET_FILE", "DATA_DIR"];
    let real = names.iter().map(|name| (OsString::from(name), bad()));
    let errors = Environment::of(real, EnvFile::default()).config().expect_err("five bad ones");
    let mut lines = errors.0;
    lines.sort();
    let mut expected: Vec<_> = names.iter().map(|n| format!("{n}: is not UTF-8 text")).collect();
    expected.sort();
    assert_eq!(lines, expected);
}

/// The one line on what is wrong with these variables.
#[track_caller]
fn line(pairs: &[(&str, &str)]) -> String {
    let uri =
        if pairs.iter().any(|(name, _)| name.contains("AMQP_URL")) { &[][..] } else { &[URI] };
    let errors = Config::read(vars(&[uri, pairs].concat())).expect_err("bad");
    let [line] = &errors.0[..] else { panic!("one line: {errors}") };
    line.clone()
}

#[test]
fn what_only_an_adapter_can_judge_is_told_with_all_else() {
    let errors = Config::read(vars(&[
        ("AMQP_URL", "amqp://me:hunter2@/%2f"),
        ("REGISTRY_URL", "me:hunter2@localhost:5000"),
        ("REGISTRY_PASSWORD", "hunter2"),
        ("NOTIFIER_SECRET", "hunter2"),
        ("DOCKER_HOST", "https://engine:2376"),
        ("DOCKER_CERT_PATH", "/nowhere"),
        ("GITHUB_URL", "https://github.com/?token=hunter2"),
        ("GITHUB_API_URL", "https://api.github.com/#hunter2"),
        ("RETRY_MAX_DELAY", "60d"),
        ("RETRY_INITIAL_DELAY", "1500us"),
        ("FAIL_QUEUE", "q"),
        ("DEAD_QUEUE", "q"),
        ("BUILD_QUEUE", "amq.q"),
        ("HTTP_ADDR", ":8080"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=hunter2"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "hunter2"),
        ("OTEL_RESOURCE_ATTRIBUTES", "hunter2"),
    ]))
    .expect_err("bad");
    let mut names: Vec<_> =
        errors.0.iter().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "AMQP_URL",
            "BUILD_QUEUE",
            "DEAD_QUEUE",
            "DOCKER_CERT_PATH",
            "GITHUB_API_URL",
            "GITHUB_URL",
            "HTTP_ADDR",
            "NOTIFIER_SECRET",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "OTEL_RESOURCE_ATTRIBUTES",
            "REGISTRY_URL",
            "REGISTRY_USERNAME",
            "RETRY_INITIAL_DELAY",
            "RETRY_MAX_DELAY",
        ],
        "{errors}"
    );
    assert!(!errors.to_string().contains("hunter2"), "{errors}");
}

#[test]
fn a_line_names_the_variable_that_is_to_be_mended() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "hunter2").expect("written");
    let path = file.path().to_string_lossy();
    for (pairs, beginning) in [
        (&[("AMQP_URL", "http://x")][..], "AMQP_URL: must look like"),
        (&[("AMQP_URL_FILE", &path)], "AMQP_URL_FILE: must look like"),
        (&[("NOTIFIER_SECRET_FILE", &path)], "NOTIFIER_SECRET_FILE: a secret begins with"),
        (&[("OUTCOME_QUEUE", "q"), ("RESULT_QUEUE", "q")], "RESULT_QUEUE: `q` is the name of"),
        (&[("FAIL_QUEUE", "image-builder.build.retry.10s")], "BUILD_QUEUE: `image-builder.build"),
        (&[("RETRY_MAX_DELAY", "60d")], "RETRY_MAX_DELAY: must be at most 49 days"),
        (&[("DEAD_QUEUE_TTL", "50d")], "DEAD_QUEUE_TTL: must be at most 49 days"),
        (&[("GITHUB_API_URL", "x")], "GITHUB_API_URL: must be an http"),
        (&[("REGISTRY_URL", "registry")], "REGISTRY_URL: Docker takes `registry`"),
        (&[("REGISTRY_USERNAME", "me")], "REGISTRY_PASSWORD: is missing beside"),
        (&[("RABBITMQ_CONSUMER_TIMEOUT", "soon")], "RABBITMQ_CONSUMER_TIMEOUT: `soon`"),
        (&[("DOCKER_HOST", "nowhere")], "DOCKER_HOST: [secret] is not"),
        (&[("DOCKER_HOST", "https://x")], "DOCKER_CERT_PATH: needed"),
    ] {
        let line = line(pairs);
        assert!(line.starts_with(beginning), "{beginning}: {line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
}

#[test]
fn dockers_variables_mean_what_they_mean_to_docker() {
    let engine = |pairs: &[(&str, &str)]| {
        let read = Config::read(vars(&[&[URI], pairs].concat()));
        read.map(|config| config.engine).map_err(|errors| errors.to_string())
    };
    assert!(!engine(&[("DOCKER_TLS_VERIFY", "")]).expect("good").tls_verify);
    // Any text switches it on.
    for on in ["0", "1", "false"] {
        assert!(engine(&[("DOCKER_TLS_VERIFY", on)]).expect("good").tls_verify, "{on}");
    }
    let tls = [("DOCKER_HOST", "tcp://engine"), ("DOCKER_TLS_VERIFY", "0"), ("HOME", "/nowhere")];
    let error = engine(&tls).expect_err("there are no certificates");
    assert!(error.contains("cannot use /nowhere/.docker/ca.pem"), "{error}");
    let error = engine(&[&tls[..], &[("DOCKER_CERT_PATH", "/certificates")]].concat());
    let error = error.expect_err("there are no certificates");
    assert!(error.contains("cannot use /certificates/ca.pem"), "{error}");
}

#[test]
fn without_a_number_as_much_is_done_at_once_as_fits_the_cores() {
    let on = |cores| {
        let environment = found(&[URI], &[]);
        let mut read = Reader::new(&environment);
        let pipeline = Config::assemble(&mut read, cores).expect("good").pipeline;
        let stages = [&pipeline.connector, &pipeline.builder, &pipeline.pusher, &pipeline.notifier];
        let stages = stages.map(|stage| stage.concurrency);
        (stages, pipeline.retry_concurrency, pipeline.builds_per_user, pipeline.most_in_hand)
    };
    assert_eq!(on(1), ([2, 1, 2, 4], 4, 1, 6));
    assert_eq!(on(16), ([16, 16, 16, 16], 16, 16, 49));
}

#[test]
fn builds_are_shared_out_among_the_hosts_that_take_some() {
    let hosts = ("BUILDKIT_HOST", "tcp://a:1, tcp://b:1/,unix:///run/c.sock");
    let of = |more: &[(&str, &str)]| {
        let all = [&[URI, ("BUILDER_CONCURRENCY", "5"), hosts], more].concat();
        Config::read(vars(&all)).map(|config| config.fleet.expect("hosts are named"))
    };
    let fleet = of(&[]).expect("good");
    assert_eq!(fleet.hosts, ["tcp://a:1", "tcp://b:1", "unix:///run/c.sock"]);
    assert_eq!(fleet.builds_per_host, 2);
    let draining = of(&[("BUILDKIT_DRAIN", "tcp://b:1"), ("CACHE_REGISTRY", "http://r:1/caches")]);
    let draining = draining.expect("good");
    assert_eq!(draining.builds_per_host, 3);
    let cache = draining.builds.cache.expect("it is set");
    assert!(cache.name == "r:1/caches" && cache.plain_http, "{cache:?}");
    assert_eq!(of(&[("BUILDKIT_BUILDS_PER_HOST", "7")]).expect("good").builds_per_host, 7);
    for (name, value) in [("BUILDKIT_DRAIN", "tcp://d:1"), ("BUILDKIT_TLS_DIR", "/nowhere")] {
        let errors = of(&[(name, value)]).expect_err("it cannot be").to_string();
        assert!(errors.starts_with(&format!("{name}: ")), "{errors}");
    }
    assert!(Config::read(vars(&[URI])).expect("good").fleet.is_none());
}

#[test]
fn no_copies_are_kept_for_no_time_however_it_is_written() {
    for none in ["0", "0s", "0h"] {
        let config = Config::read(vars(&[URI, ("DEAD_QUEUE_TTL", none)])).expect("good");
        assert_eq!(config.broker.dead_ttl, None, "{none}");
    }
    let config = Config::read(vars(&[URI, ("DEAD_QUEUE_TTL", "49d")])).expect("good");
    assert_eq!(config.broker.dead_ttl, Some(Duration::from_secs(49 * 24 * 3600)));
}

#[test]
fn of_an_address_nothing_is_shown_that_may_be_a_credential() {
    for (uri, shown) in [
        ("amqp://broker:5672/%2f", "amqp://broker:5672/%2f"),
        ("amqp://me:hunter2@broker/%2f?auth=hunter2", "amqp://broker/%2f"),
        ("amqps://hunter2@broker", "amqps://broker"),
    ] {
        let (_, effective) = found(&[("RABBITMQ_URI", uri)], &[]).effective().expect("good");
        assert_eq!(effective[0].value.as_deref(), Some(shown), "{uri}");
    }
}

/// The lines of the example file that give a variable, commented out or not.
fn variables_of_the_example() -> HashMap<String, String> {
    example()
        .lines()
        .filter_map(|line| line.strip_prefix('#').unwrap_or(line).split_once('='))
        .filter(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Compares a file of the repository with what the table makes of it.
#[track_caller]
fn is_of_the_table(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, text).expect("the file can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "{file} is not what the table says: run `UPDATE=1 cargo test --lib config::`"
    );
}

#[test]
fn the_documents_of_the_settings_are_those_of_the_table() {
    is_of_the_table("config/.env.example", &example());
    is_of_the_table("docs/settings.md", &documents::settings());
}

#[test]
fn every_setting_of_the_table_is_read() {
    let (_, effective) = found(&[], &[URI]).effective().expect("good");
    let mut read: Vec<_> = effective.iter().map(|read| read.setting.name()).collect();
    let mut known: Vec<_> = Setting::all().map(Setting::name).collect();
    read.sort();
    known.sort();
    assert_eq!(read, known);
}

#[test]
fn the_example_file_lists_every_variable_and_no_other() {
    let mut known: Vec<_> =
        Setting::all().flat_map(Setting::variables).map(Variable::name).collect();
    let mut listed: Vec<_> = variables_of_the_example().into_keys().collect();
    known.sort();
    listed.sort();
    assert_eq!(listed, known);
}

#[test]
fn the_defaults_in_the_example_file_are_the_defaults() {
    let shown =
        Config::read(variables_of_the_example()).expect("the example is a good configuration");
    let plain = Config::read(vars(&[URI])).expect("a good configuration");
    assert_eq!(format!("{shown:#?}"), format!("{plain:#?}"));
}

#[test]
fn traces_are_set_by_opentelemetrys_own_variables() {
    assert!(Config::read(vars(&[URI])).expect("good").telemetry.traces.is_none());
    let config = Config::read(vars(&[
        URI,
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/base/"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2, x-scope = a"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=other"),
    ]));
    let config = config.expect("good");
    assert!(!format!("{config:?}").contains("hunter2"));
    let traces = config.telemetry.traces.expect("they are on");
    assert_eq!(traces.url.as_str(), "http://collector:4318/base/v1/traces");
    assert_eq!(traces.headers["authorization"], "Bearer hunter2");
    assert_eq!(traces.headers["x-scope"], "a");
    let of = |name: &str| {
        let found = traces.resource.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    };
    assert_eq!(of("service.name"), Some("other"));
    assert_eq!(of("deployment.environment.name"), Some("test"));
    assert_eq!(of("service.version"), Some(env!("CARGO_PKG_VERSION")));
}

#[test]
fn what_is_wrong_with_the_settings_of_traces_is_named_without_their_secrets() {
    let errors = Config::read(vars(&[
        URI,
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
    ]))
    .expect_err("bad");
    let names: Vec<_> = errors.0.iter().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
    assert_eq!(
        names,
        [
            "OTEL_EXPORTER_OTLP_HEADERS",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        ]
    );
    assert!(!errors.to_string().contains("hunter2"));
}

#[test]
fn a_value_that_is_hardly_meant_is_named_with_what_was_perhaps_meant() {
    for (name, value, perhaps) in [
        ("CACHE_BUDGET", "20", "20 bytes; perhaps 20GB"),
        ("CACHE_BUDGET", "20KB", "perhaps 20GB"),
        ("CACHE_BUDGET", "20G", "perhaps 20GB"),
        ("DISK_LOW_WATERMARK", "5", "perhaps 5%"),
        ("DISK_LOW_WATERMARK", "5%,2", "perhaps 2% or 2GB"),
        ("DISK_LOW_WATERMARK", "500", "perhaps 500GB"),
        ("DISK_HIGH_WATERMARK", "90%", "perhaps 10%"),
        ("SUPERVISOR_WINDOW", "5M", "perhaps 5m"),
        ("JOB_TIMEOUT", "1h 5M", "perhaps 1h 5m"),
        ("RETRY_MAX_DELAY", "1M", "perhaps 1m"),
        ("DEAD_QUEUE_TTL", "1M", "perhaps 1m"),
        ("BUILDER_TIMEOUT", "15ms", "perhaps 15s or 15m"),
        ("BUILDER_TIMEOUT", "15", "perhaps 15s"),
        ("BUILDER_TIMEOUT", "15S", "perhaps 15s"),
        ("SUPERVISOR_WINDOW", "1y", "longer than 31 days"),
        ("RUST_LOG", "verbose", "perhaps debug"),
        ("RUST_LOG", "warning", "perhaps warn"),
        ("RUST_LOG", "INFOO", "perhaps info"),
        ("RUST_LOG", "info,lapin", "`lapin` is none of"),
        ("RUST_LOG", "imagebuilder=debug", "perhaps info,imagebuilder=debug"),
        ("RUST_LOG", "image_builder=loud", "is no filter"),
        ("BULIDER_TIMEOUT", "1m", "perhaps BUILDER_TIMEOUT"),
    ] {
        let line = line(&[(name, value)]);
        assert!(line.starts_with(&format!("{name}: ")), "{line}");
        assert!(line.contains(perhaps), "{name}={value}: {line}");
    }
    for (name, value) in [
        ("CACHE_BUDGET", "0"),
        ("CACHE_BUDGET", "20000000000"),
        ("DISK_LOW_WATERMARK", "0"),
        ("DISK_LOW_WATERMARK", "1MB"),
        ("DISK_LOW_WATERMARK", "0.5%"),
        ("DRAIN_TIMEOUT", "500ms"),
        ("RABBITMQ_CONSUMER_TIMEOUT", "7d"),
        ("RUST_LOG", "off"),
        ("RUST_LOG", "WARN"),
        ("RUST_LOG", "info,image_builder::output=off,lapin=debug"),
        ("RUST_LOG", "image_builder=debug"),
        ("RUST_LOG", "[job{stage=builder}]=trace"),
    ] {
        let read = Config::read(vars(&[URI, (name, value)]));
        assert!(read.is_ok(), "{name}={value}: {}", read.expect_err("it is bad"));
    }
}

#[test]
fn a_name_that_looks_like_ours_does_no_harm_where_ours_is_set_and_is_refused_in_the_file() {
    let slip = ("RABBITMQ_URL", "amqp://other/%2f");
    assert!(found(&[], &[URI, slip]).config().is_ok());
    assert!(found(&[URI], &[slip]).config().is_ok());
    let ours = ("AMQP_URL", "amqp://other/%2f");
    assert!(found(&[], &[ours, slip]).config().is_ok());
    let errors = found(&[], &[slip]).config().expect_err("nothing is set");
    assert!(
        errors.0[0].starts_with("RABBITMQ_URL: is no setting; perhaps RABBITMQ_UR"),
        "{errors}"
    );
    let errors = found(&[URI, slip], &[]).config().expect_err("a slip");
    let line = "RABBITMQ_URL: is no setting (config/.env line 2); perhaps RABBITMQ_URI is meant";
    assert_eq!(errors.0, [line]);
    let warnings = found(&[URI, ("TZ", "UTC")], &[]).config().expect("good").warnings();
    assert_eq!(warnings, ["config/.env line 2: TZ is no setting, and the worker does not read it"]);
}

#[test]
fn a_pair_of_quotes_around_a_value_is_no_part_of_it_wherever_it_comes_from() {
    for (written, value) in [
        ("\"a b\"", "a b"),
        ("'pa$word'", "pa$word"),
        ("\"it's\"", "it's"),
        ("'\"x\"'", "\"x\""),
        ("a\"b", "a\"b"),
        ("\"", "\""),
    ] {
        let pair = [URI, ("OTEL_SERVICE_NAME", written)];
        for environment in [found(&pair, &[]), found(&[], &pair)] {
            let (_, effective) = environment.effective().expect("good");
            let name = |it: &&Effective| it.setting.name() == "OTEL_SERVICE_NAME";
            let shown = effective.iter().find(name).and_then(|it| it.value.as_deref());
            assert_eq!(shown, Some(value), "{written}");
        }
    }
}

/// What a person may write into an address, with a password that is not percent-encoded or stands where
/// none belongs.
#[test]
fn nothing_secret_in_an_address_is_ever_told() {
    let logins = [
        "joe:hunter2",
        "joe:7/hunter2",
        "joe:7#hunter2",
        "joe:7?hunter2",
        "joe:a@7/hunter2",
        "hunter2",
    ];
    let rests = [
        "@host",
        "@host:80/path",
        "@host/%2f",
        "%40host/",
        "@",
        "@[::1]/",
        "@host/?token=hunter2#hunter2",
    ];
    let names = [
        "RABBITMQ_URI",
        "AMQP_URL",
        "REGISTRY_URL",
        "GITHUB_URL",
        "GITHUB_API_URL",
        "CONTAINER_MANAGER_URL",
        "CONNECTOR_MANAGER_URL",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "DOCKER_HOST",
        "BUILDKIT_HOST",
        "BUILDKIT_DRAIN",
        "CACHE_REGISTRY",
        "HTTP_ADDR",
    ];
    for name in names {
        for scheme in ["amqp://", "https://", "http:", "tcp://", ""] {
            for text in
                logins.iter().flat_map(|login| rests.map(|rest| format!("{scheme}{login}{rest}")))
            {
                // A name alone is a host, and nothing tells that it is not.
                if matches!(
                    text.split_once("://").map_or(&*text, |(_, rest)| rest),
                    "hunter2" | "hunter2@"
                ) {
                    continue;
                }
                let uri = if name.contains("AMQP") { &[][..] } else { &[URI] };
                let environment = found(&[], &[uri, &[(name, text.as_str())]].concat());
                let told = match environment.effective() {
                    Err(errors) => errors.to_string(),
                    Ok((config, effective)) => {
                        let shown = effective.into_iter().filter_map(|it| it.value);
                        shown.chain(config.warnings()).collect::<Vec<_>>().join("\n")
                    }
                };
                assert!(!told.contains("hunter2"), "{name}={text} is told as {told}");
            }
        }
    }
}

#[test]
fn proxies_are_known_in_either_case_and_the_lower_one_wins() {
    let of = |pairs: &[(&str, &str)]| {
        let network = Config::read(vars(pairs)).expect("good").network;
        network.proxies.variables().get("HTTPS_PROXY").cloned()
    };
    let (one, other) = ("http://one.example:3128", "http://other.example:3128");
    assert_eq!(of(&[("HTTPS_PROXY", one)]).as_deref(), Some(one));
    assert_eq!(of(&[("https_proxy", one)]).as_deref(), Some(one));
    assert_eq!(of(&[("HTTPS_PROXY", one), ("https_proxy", other)]).as_deref(), Some(other));
    assert_eq!(of(&[("HTTPS_PROXY", one), ("https_proxy", "")]).as_deref(), Some(one));
    assert_eq!(of(&[("HTTPS_PROXY", "proxy:3128")]).as_deref(), Some("http://proxy:3128"));
    assert_eq!(of(&[("HTTP_PROXY", one)]), None);
}

#[test]
fn a_proxy_s_password_is_not_shown_and_certificates_have_to_be_some() {
    let pairs = [("HTTP_PROXY", "http://joe:hunter2@proxy.example:3128")];
    let environment = Environment::of(
        vars(&pairs).into_iter().map(|(name, value)| (name.into(), value.into())),
        EnvFile::default(),
    );
    let (config, effective) = environment.effective().expect("good");
    assert!(!format!("{config:?}").contains("hunter2"));
    let shown = effective.iter().find(|it| it.setting.name() == "HTTP_PROXY").expect("read");
    assert_eq!(shown.value.as_deref(), Some("http://proxy.example:3128/"));

    for (name, bad) in [
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
        ("SSL_CERT_FILE", "Cargo.toml"),
        ("HTTPS_PROXY", "socks5://proxy.example"),
        ("HTTP_PROXY", "http://joe:7/hunter2@proxy.example"),
    ] {
        let errors = Config::read(vars(&[(name, bad)])).expect_err(bad).to_string();
        assert!(
            errors.starts_with(&format!("{name}: ")) && !errors.contains("hunter2"),
            "{errors}"
        );
    }
}
