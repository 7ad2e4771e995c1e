//! The command line and the settings: what is wrong is said at once, and ends with its code.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde_json::{Value, json};

use crate::support::git_server;
use crate::support::until;
use crate::support::worker::{Settings, Worker, command, run};
use crate::support::world::{World, dockerfile, repository};

fn settings(pairs: &[(&str, &str)]) -> Settings {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn all_bad_settings_are_named_at_once() {
    let bad = [
        ("RABBITMQ_URI", "http://localhost:5672"),
        ("RETRY_INITIAL_DELAY", "soon"),
        ("BUILDER_CONCURRENCY", "many"),
        ("RETRY_MULTIPLIER", "0"),
        ("CONTAINER_MANAGER_URL", "ftp://example.invalid"),
        ("DOCKER_HOST", "carrier pigeon"),
        ("BUILDER_NETWORK", "bridge of sighs"),
        ("HTTP_ADDR", "nowhere"),
        ("LOG_FORMAT", "haiku"),
        ("JOB_TIMEOUT", "2h"),
        ("GITHUB_URL", "https://me:canary-4b7d-password@github.com"),
        ("GITHUB_API_URL", "https://api.github.com/?token=canary-4b7d-password"),
        ("REGISTRY_URL", "me:canary-4b7d-password@localhost:5000"),
        ("REGISTRY_USERNAME", " "),
        ("NOTIFIER_SECRET", "canary-4b7d-password"),
        ("DEAD_QUEUE", "image-builder.fail"),
        ("RETRY_MAX_DELAY", "60d"),
    ];
    // Whatever is logged, and before anything is touched.
    let others = [("REGISTRY_PASSWORD", "canary-4b7d-password"), ("RUST_LOG", "off")];
    let others = [&others[..], &[("DATA_DIR", "/dev/null/no-directory")]].concat();
    let ended = run(&["serve"], &settings(&[&bad[..], &others].concat()));
    assert_eq!(ended.code, 78, "{}", ended.stderr);
    for (name, _) in bad {
        let lines = ended.stderr.lines().filter(|line| line.contains(&format!(": {name}: ")));
        assert_eq!(lines.count(), 1, "one line on {name}:\n{}", ended.stderr);
    }
    assert_eq!(ended.stderr.lines().count(), bad.len(), "{}", ended.stderr);
    assert!(!ended.stderr.contains("canary-4b7d"), "{}", ended.stderr);
}

#[test]
fn a_bad_secret_is_named_and_not_shown() {
    let secret = "canary-4b7d-password";
    let uri = "amqp://guest:guest@localhost:5672/%2f";
    let ended = run(&["serve"], &settings(&[("RABBITMQ_URI", uri), ("NOTIFIER_SECRET", secret)]));
    assert_eq!(ended.code, 78, "{}", ended.stderr);
    assert!(ended.stderr.contains("NOTIFIER_SECRET"), "{}", ended.stderr);
    assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
}

#[test]
fn a_broker_that_refuses_the_password_is_a_bad_setting() {
    let bad = crate::support::broker::uri().replace("guest:guest@", "guest:canary-4b7d-password@");
    let world = World::new();
    for name in ["RABBITMQ_URI", "AMQP_URL"] {
        let mut settings = world.settings();
        settings.remove("RABBITMQ_URI");
        settings.insert(name.to_owned(), bad.clone());
        let worker = Worker::spawn(&settings);
        assert_eq!(worker.wait(), 78, "{:?}", worker.lines());
        let lines = worker.lines().join("\n");
        assert!(lines.contains(&format!("{name}: the broker at ")), "{lines}");
        assert!(!lines.contains("canary-4b7d"), "{lines}");
    }
}

#[test]
fn a_queue_that_cannot_be_used_is_a_bad_setting_and_no_matter_of_the_brokers_address() {
    let world = World::new();
    let taken = format!("{}.other.retry.200ms", world.user);
    let mut first = world.settings();
    first.insert("FAIL_QUEUE".to_owned(), taken.clone());
    let first = Worker::start(&first);
    let mut second = world.settings();
    second.insert("BUILD_QUEUE".to_owned(), format!("{}.other", world.user));
    let second = Worker::spawn(&second);
    assert_eq!(second.wait(), 78, "{:?}", second.lines());
    let line = second.wait_for_line("cannot start");
    assert!(line.contains(&format!("the queue `{taken}` cannot be used: ")), "{line}");
    assert!(!line.contains("RABBITMQ_URI"), "{line}");
    world.finish(&[&first]);
}

#[test]
fn a_bad_http_address_is_a_bad_setting_and_one_that_is_in_use_is_not() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let taken = listener.local_addr().expect("it has an address").to_string();
    for (address, code) in [
        (":8080", 78),
        ("nonsense.invalid:8080", 78),
        // Of no machine: kept for documents.
        ("192.0.2.1:8080", 78),
        (&taken, 69),
    ] {
        for level in ["info", "off"] {
            let uri = ("RABBITMQ_URI", "amqp://localhost/%2f");
            let ended =
                run(&["serve"], &settings(&[uri, ("HTTP_ADDR", address), ("RUST_LOG", level)]));
            assert_eq!(ended.code, code, "{address}: {}", ended.stderr);
            let lines = ended.stderr.lines().filter(|line| line.contains("HTTP_ADDR: "));
            assert_eq!(lines.count(), 1, "{address}: {}", ended.stderr);
        }
    }
    drop(listener);
}

#[test]
fn a_variable_that_is_no_text_is_named_where_it_is_ours_and_else_does_not_matter() {
    let bad = OsStr::from_bytes(b"caf\xe9");
    let ended_with = |name: &str| {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mut command = command(&["config"], &Settings::new(), &directory);
        let output = command.env(name, bad).output().expect("the program starts");
        let lines = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), lines)
    };
    let (code, lines) = ended_with("AMQP_URL");
    assert_eq!((code, lines.as_str()), (Some(78), "image-builder: AMQP_URL: is not UTF-8 text\n"));
    let (code, lines) = ended_with("LS_COLORS");
    assert_eq!((code, lines.as_str()), (Some(0), ""));
}

/// What `image-builder config` shows, by name.
fn shown(settings: &Settings, file: &str) -> BTreeMap<String, Value> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    std::fs::create_dir(directory.path().join("config")).expect("it is empty");
    std::fs::write(directory.path().join("config/.env"), file).expect("a file can be written");
    let mut command = command(&["config", "--json"], settings, &directory);
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("it is text");
    assert!(!text.contains("canary-4b7d"), "{text}");
    text.lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("every line is JSON");
            (line["name"].as_str().expect("it has a name").to_owned(), line)
        })
        .collect()
}

#[test]
fn what_is_in_force_is_shown_with_where_it_came_from_and_without_credentials() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let password = directory.path().join("password");
    std::fs::write(&password, "canary-4b7d-password\n").expect("a file can be written");
    let password = password.display().to_string();
    let real = settings(&[
        ("AMQP_URL", "amqp://me:canary-4b7d@broker.example:5671/%2f?heartbeat=5"),
        ("REGISTRY_USERNAME", "me"),
        ("REGISTRY_PASSWORD_FILE", &password),
        ("NOTIFIER_SECRET", "whsec_Y2FuYXJ5LTRiN2QtaHVudGVyMi1odW50ZXIyLWh1bnQ="),
        ("CONTAINER_MANAGER_URL", "https://me:canary-4b7d@manager.example/hook?key=canary-4b7d"),
        ("BUILDER_CONCURRENCY", "3"),
        ("CONNECTOR_CONCURRENCY", "2"),
        ("PUSHER_CONCURRENCY", "2"),
    ]);
    let file = "DRAIN_TIMEOUT=90s\nRABBITMQ_URI=amqp://not-this-one.example/%2f\n";
    let shown = shown(&real, file);
    for (name, value, source) in [
        ("RABBITMQ_URI", json!("amqp://broker.example:5671/%2f"), "environment"),
        ("REGISTRY_USERNAME", json!("me"), "environment"),
        ("REGISTRY_PASSWORD", json!("[secret]"), "environment"),
        ("NOTIFIER_SECRET", json!("[secret]"), "environment"),
        ("CONTAINER_MANAGER_URL", json!("https://manager.example/hook"), "environment"),
        ("BUILDER_CONCURRENCY", json!("3"), "environment"),
        ("LISTENER_CONCURRENCY", json!("8"), "default"),
        ("BUILDER_PER_USER", json!("3"), "default"),
        ("DRAIN_TIMEOUT", json!("90s"), "config/.env"),
        ("JOB_TIMEOUT", json!("25m"), "default"),
        ("RESULT_QUEUE", Value::Null, "default"),
    ] {
        let line = &shown[name];
        assert_eq!((&line["value"], &line["source"]), (&value, &json!(source)), "{name}");
    }
    assert_eq!(shown["RABBITMQ_URI"]["variable"], "AMQP_URL");
    assert_eq!(shown["REGISTRY_PASSWORD"]["variable"], "REGISTRY_PASSWORD_FILE");
    assert_eq!(shown["REGISTRY_PASSWORD"]["file"], password);

    let table = run(&["config"], &real);
    assert_eq!(table.code, 0, "{}", table.stderr);
    assert!(!table.stdout.contains("canary-4b7d"), "{}", table.stdout);
    for name in shown.keys() {
        let lines = table.stdout.lines().filter(|line| line.starts_with(&format!("  {name} ")));
        assert_eq!(lines.count(), 1, "{name}: {}", table.stdout);
    }
    let example = run(&["config", "--example"], &Settings::new());
    assert_eq!((example.code, example.stderr.as_str()), (0, ""));
    assert!(example.stdout == include_str!("../../config/.env.example"), "{}", example.stdout);
}

#[test]
fn bad_settings_are_shown_as_the_worker_tells_them() {
    let bad = settings(&[("RABBITMQ_URI", "canary-4b7d"), ("JOB_TIMEOUT", "soon")]);
    let (shown, told) = (run(&["config"], &bad), run(&["serve"], &bad));
    assert_eq!((shown.code, shown.stdout.as_str()), (78, ""));
    assert_eq!((shown.code, shown.stderr), (told.code, told.stderr));
}

#[test]
fn a_worker_is_asked_how_it_is_with_no_other_setting_than_its_address() {
    let world = World::new();
    let worker = world.worker();
    let address = worker.http();
    let port = address.rsplit_once(':').expect("it has a port").1;
    let ask = |arguments: &[&str], address: &str| {
        run(arguments, &settings(&[("HTTP_ADDR", address), ("JOB_TIMEOUT", "soon")]))
    };
    for address in [&address, &format!("0.0.0.0:{port}")] {
        let alive = ask(&["health"], address);
        let line = format!("the worker at 127.0.0.1:{port} is alive\n");
        assert_eq!((alive.code, alive.stdout), (0, line), "{}", alive.stderr);
    }
    let ready = until("it is ready", || {
        let ready = ask(&["health", "--ready"], &address);
        (ready.code == 0).then_some(ready.stdout)
    });
    assert_eq!(ready, format!("the worker at 127.0.0.1:{port} is ready\n"));
    world.finish(&[&worker]);

    let gone = ask(&["health"], &address);
    assert_eq!((gone.code, gone.stdout.as_str()), (69, ""));
    assert!(gone.stderr.contains("does not answer: "), "{}", gone.stderr);
    assert_eq!(gone.stderr.lines().count(), 1, "{}", gone.stderr);
    let bad = ask(&["health"], "nowhere");
    assert_eq!(bad.code, 78);
    assert!(bad.stderr.starts_with("image-builder: HTTP_ADDR: "), "{}", bad.stderr);
    assert_eq!(bad.stderr.lines().count(), 1, "{}", bad.stderr);
}

#[test]
fn a_worker_that_is_not_ready_says_what_it_lacks() {
    let world = World::new().with("RABBITMQ_URI", "amqp://guest:guest@127.0.0.1:1/%2f");
    let worker = Worker::spawn(&world.settings());
    let address = settings(&[("HTTP_ADDR", &worker.http())]);
    let asked = until("the broker was looked for", || {
        let asked = run(&["health", "--ready"], &address);
        asked.stderr.contains("broker (not connected)").then_some(asked)
    });
    assert_eq!(asked.code, 69);
    assert!(asked.stderr.contains(" is not ready: "), "{}", asked.stderr);
    assert_eq!(asked.stderr.lines().count(), 1, "{}", asked.stderr);
    assert_eq!(run(&["health"], &address).code, 0);
    worker.stop();
}

#[test]
fn the_command_line_is_explained_and_its_mistakes_are_usage() {
    let help = run(&["--help"], &Settings::new());
    assert_eq!(help.code, 0);
    assert!(help.stdout.contains("serve"), "{}", help.stdout);
    let help = run(&["serve", "--help"], &Settings::new());
    assert_eq!(help.code, 0);
    assert!(help.stdout.contains("SIGTERM"), "{}", help.stdout);
    assert!(help.stdout.contains("the environment and from config/.env;"), "{}", help.stdout);
    for (command, exit_codes) in [
        (&[][..], 8),
        (&["serve"], 6),
        (&["submit"], 7),
        (&["status"], 6),
        (&["logs"], 7),
        (&["cancel"], 6),
        (&["config"], 3),
        (&["health"], 4),
        (&["dead"], 6),
        (&["dead", "list"], 6),
        (&["dead", "show"], 6),
        (&["dead", "redrive"], 6),
        (&["dead", "drop"], 6),
    ] {
        let help = run(&[command, &["--help"]].concat(), &Settings::new()).stdout;
        let codes = help.split_once("Exit codes:\n").expect("they are listed").1;
        let codes = codes.lines().take_while(|line| !line.is_empty()).count();
        assert_eq!(codes, exit_codes, "{help}");
        assert!(help.contains("Example"), "{help}");
        assert!(help.contains("image-builder config --example"), "{help}");
    }
    let version = run(&["--version"], &Settings::new());
    assert_eq!(
        (version.code, version.stdout.trim()),
        (0, concat!("image-builder ", env!("CARGO_PKG_VERSION")))
    );
    for wrong in [&["sing"][..], &[], &["serve", "--loudly"], &["serve", "extra"]] {
        let ended = run(wrong, &Settings::new());
        assert_eq!(ended.code, 64, "{wrong:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("Usage"), "{wrong:?}: {}", ended.stderr);
    }
}

#[test]
fn a_directory_is_had_by_one_process_at_a_time() {
    let world = World::new();
    let settings = world.settings();
    let first = Worker::start(&settings);
    let second = Worker::spawn(&settings);
    assert_eq!(second.wait(), 75);
    let lines = second.lines().join("\n");
    assert!(lines.contains("DATA_DIR"), "{lines}");
    world.finish(&[&first]);
}

#[test]
fn a_job_timeout_below_those_of_the_stages_is_warned_of_once_and_the_worker_works() {
    let world = World::new().with("JOB_TIMEOUT", "10m");
    let worker = world.worker();
    let lines = worker.lines();
    let warnings: Vec<_> = lines.iter().filter(|line| line.contains("JOB_TIMEOUT")).collect();
    let [warning] = &warnings[..] else { panic!("one line on it: {warnings:?}") };
    assert!(warning.contains("\"WARN\"") && warning.contains("BUILDER_TIMEOUT"), "{warning}");
    let repo = repository("short", &[("Dockerfile", &dockerfile("RUN true"))]);
    world.build(&world.request(&repo)).ready();
    world.finish(&[&worker]);
}

#[test]
fn settings_come_from_files_too_and_the_real_environment_wins() {
    let world = World::new();
    let mut settings = world.settings();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("secret");
    let secret = settings.remove("NOTIFIER_SECRET").expect("the world has one");
    std::fs::write(&file, format!("{secret}\n")).expect("a file can be written");
    settings.insert("NOTIFIER_SECRET_FILE".to_owned(), file.display().to_string());
    // The older name of the broker's address.
    let uri = settings.remove("RABBITMQ_URI").expect("the world has one");
    settings.insert("AMQP_URL".to_owned(), uri);
    let env = format!(
        "GITHUB_URL={}\nBUILD_QUEUE=not-this-one\n\
         RABBITMQ_URI=amqp://nobody@not-this-one.invalid/%2f\nNOTIFIER_SECRET=not-this-one\n",
        git_server::server_url()
    );
    settings.remove("GITHUB_URL");

    let worker = Worker::start_with_file(&settings, "config/.env", &env);
    let repo = repository("from-files", &[("Dockerfile", &dockerfile("RUN true"))]);
    world.build(&world.request(&repo)).ready();
    world.finish(&[&worker]);
}

#[test]
fn the_file_is_read_as_it_stands_and_its_bad_lines_are_named_by_their_numbers() {
    let file = "\u{feff}RABBITMQ_URI=amqp://localhost/%2f\r\nREGISTRY_USERNAME=pa$word${HOME}#x\r\n\
                REGISTRY_PASSWORD='hun$ter2 \"x'\nOTEL_SERVICE_NAME=\"a b\"\n";
    let read = shown(&Settings::new(), file);
    assert_eq!(read["REGISTRY_USERNAME"]["value"], "pa$word${HOME}#x");
    assert_eq!(read["RABBITMQ_URI"]["value"], "amqp://localhost/%2f");
    assert_eq!(read["OTEL_SERVICE_NAME"]["value"], "a b");

    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    std::fs::create_dir(directory.path().join("config")).expect("it is empty");
    let bad = format!("{file}canary-4b7d\n\nBULIDER_TIMEOUT=1m\nDRAIN_TIMEOUT=soon\n");
    std::fs::write(directory.path().join("config/.env"), bad).expect("a file can be written");
    let output = command(&["serve"], &Settings::new(), &directory).output().expect("it starts");
    let lines = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(78), "{lines}");
    for line in [
        "image-builder: config/.env line 5: is not NAME=value\n",
        "image-builder: BULIDER_TIMEOUT: is no setting (config/.env line 7); perhaps BUILDER_TIMEOUT is meant\n",
        "image-builder: DRAIN_TIMEOUT: `soon` is no duration",
    ] {
        assert!(lines.contains(line), "{line} is missing in:\n{lines}");
    }
    assert!(lines.lines().count() == 3 && !lines.contains("canary-4b7d"), "{lines}");
}

#[test]
fn a_value_or_a_name_that_is_hardly_meant_is_named_with_what_was_perhaps_meant() {
    let slips = [
        ("CACHE_BUDGET", "20", "20GB"),
        ("DISK_LOW_WATERMARK", "5", "5%"),
        ("SUPERVISOR_WINDOW", "5M", "5m"),
        ("RUST_LOG", "verbose", "debug"),
        ("BULIDER_TIMEOUT", "1m", "BUILDER_TIMEOUT"),
    ];
    let pairs: Vec<_> = slips.iter().map(|(name, value, _)| (*name, *value)).collect();
    let uri = [("RABBITMQ_URI", "amqp://localhost/%2f")];
    let ended = run(&["serve"], &settings(&[&uri, &pairs[..]].concat()));
    assert_eq!(ended.code, 78, "{}", ended.stderr);
    for (name, _, meant) in slips {
        let line = ended.stderr.lines().find(|line| line.contains(&format!(": {name}: ")));
        let line = line.unwrap_or_else(|| panic!("{name}: {}", ended.stderr));
        assert!(line.contains(&format!("perhaps {meant}")), "{line}");
    }
    assert_eq!(ended.stderr.lines().count(), slips.len(), "{}", ended.stderr);
}

#[test]
fn a_password_that_is_not_percent_encoded_is_never_told() {
    for uri in [
        "amqp://joe:7/canary-4b7d@host/%2f",
        "amqp://joe:7#canary-4b7d@host",
        "amqp://joe:canary-4b7d",
    ] {
        for arguments in [&["serve"][..], &["config"], &["dead", "list"]] {
            let ended = run(arguments, &settings(&[("RABBITMQ_URI", uri)]));
            assert_eq!(ended.code, 78, "{uri}: {}", ended.stderr);
            assert!(ended.stderr.contains("RABBITMQ_URI: "), "{}", ended.stderr);
            let told = ended.stdout + &ended.stderr;
            assert!(!told.contains("canary-4b7d"), "{uri}: {told}");
        }
    }
}
