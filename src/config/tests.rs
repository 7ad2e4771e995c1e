use super::*;

fn vars(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const URI: (&str, &str) = ("RABBITMQ_URI", "amqp://guest:guest@localhost:5672/%2f");

#[test]
fn the_broker_is_all_that_has_to_be_set() {
    let config = Config::read(vars(&[URI])).expect("a good configuration");
    assert_eq!(config.registry.url, "localhost:5000");
    assert_eq!(config.retry.max_attempts, 5);
    assert_eq!(config.listener.job_timeout, Duration::from_secs(25 * 60));
    assert_eq!(config.broker.dead_ttl, Some(Duration::from_secs(7 * 24 * 3600)));
    assert_eq!(config.broker.result_queue, None);
}

#[test]
fn every_bad_value_is_named_at_once() {
    let errors = Config::read(vars(&[
        ("BUILDER_CONCURRENCY", "0"),
        ("BUILDER_TIMEOUT", "soon"),
        ("BUILDER_NETWORK", "mine"),
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
        "RABBITMQ_URI",
        "BUILDER_CONCURRENCY",
        "BUILDER_TIMEOUT",
        "BUILDER_NETWORK",
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
    std::fs::write(file.path(), "hunter2\n").expect("written");
    let path = file.path().to_string_lossy().into_owned();
    let config = Config::read(vars(&[URI, ("REGISTRY_PASSWORD_FILE", &path)])).expect("good");
    assert_eq!(config.registry.password, Some(Secret::new("hunter2")));
    assert!(!format!("{config:?}").contains("hunter2"));

    let both = vars(&[URI, ("REGISTRY_PASSWORD", "x"), ("REGISTRY_PASSWORD_FILE", &path)]);
    assert!(Config::read(both).expect_err("two").to_string().starts_with("REGISTRY_PASSWORD: "));
}

#[test]
fn an_empty_value_counts_as_unset() {
    let config =
        Config::read(vars(&[URI, ("REGISTRY_URL", ""), ("RESULT_QUEUE", " ")])).expect("good");
    assert_eq!(config.registry.url, "localhost:5000");
    assert_eq!(config.broker.result_queue, None);
}

#[test]
fn the_example_file_lists_every_variable() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/.env.example");
    let example = std::fs::read_to_string(path).expect("the example is there");
    let source = include_str!("read.rs");
    let fields = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub ")?.strip_suffix(": Option<String>,"));
    let mut seen = 0;
    for field in fields {
        let name = field.to_uppercase();
        assert!(example.contains(&name), "{name} is missing in config/.env.example");
        seen += 1;
    }
    assert!(seen > 40);
}
