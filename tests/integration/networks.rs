//! A network of its own kind between the worker and its services: proxies, and certificates that nobody else
//! knows.

use serde_json::{Value, json};

use crate::support::canary;
use crate::support::forward_proxy::ForwardProxy;
use crate::support::git_server::{GOOD_TOKEN, GitRepo, PRIVATE, server_url};
use crate::support::postgres::Database;
use crate::support::private_tls::{Authority, Begin};
use crate::support::worker::Worker;
use crate::support::world::{World, dockerfile, repository, with};
use crate::support::{runtime, unique, until};

/// The git server's own address, as `host:port`.
fn git_server() -> String {
    server_url().trim_start_matches("http://").to_owned()
}

/// A proxy that alone knows where `forge.invalid` is.
fn proxy_to_the_forge(password: &str) -> ForwardProxy {
    let names = [("forge.invalid:80", git_server())];
    runtime().block_on(ForwardProxy::start(password, &names))
}

#[test]
fn a_forge_beyond_a_proxy_is_reached_by_it_and_builds_are_told_of_it_but_not_its_password() {
    let password = canary::secret("password");
    let proxy = proxy_to_the_forge(&password);
    let world = World::new()
        .with("http_proxy", &proxy.url())
        .with("HTTP_PROXY", "http://nobody.invalid:1")
        .with("NO_PROXY", ".corp.invalid")
        .with("GITHUB_URL", "http://forge.invalid")
        .with("RUST_LOG", "trace");
    world.keep_secret(&password);
    let worker = world.worker();
    let steps = format!(
        "RUN echo {}; echo \"to $http_proxy but $NO_PROXY\"; [ \"$HTTP_PROXY\" = \"$http_proxy\" ]; \
         test $? -eq 1",
        unique("step")
    );
    let repo = repository("proxied", &[("Dockerfile", &dockerfile(&steps))]);
    let request = with(
        world.request(&repo),
        json!({"buildPlan": {"buildArgs": {"http_proxy": "http://mine.invalid"}}}),
    );
    let told = world.build(&request).failed("build_failed");
    let log = told.data()["log"].to_string();
    let address = proxy.url();
    let address = address.rsplit('@').next().expect("it has a user");
    let line = format!("to http://joe:[secret]@{address} but .corp.invalid");
    assert!(log.contains(&line), "{log}");
    let asked = proxy.asked();
    assert!(asked.iter().any(|name| name == "forge.invalid:80"), "{asked:?}");
    // The managers and the registry are on this machine.
    assert!(asked.iter().all(|name| name == "forge.invalid:80"), "{asked:?}");
    let note = "`buildArgs.http_proxy` is not used";
    assert!(worker.lines().iter().any(|line| line.contains(note)), "it is said");
    world.finish(&[&worker]);
}

#[test]
fn what_is_the_same_but_for_the_proxy_is_built_once() {
    let proxy = proxy_to_the_forge("canary-4b7d-password");
    let world = World::new();
    let first = world.worker();
    let steps = format!("RUN echo {}", unique("step"));
    let repo = repository("same", &[("Dockerfile", &dockerfile(&steps))]);
    let built = world.build(&world.request(&repo)).ready();
    world.finish(&[&first]);
    let world = world.with("HTTP_PROXY", &proxy.url()).with("GITHUB_URL", "http://forge.invalid");
    let second = world.worker();
    let again = world.build(&world.request(&repo)).ready();
    assert_eq!(again.data()["reused"], true);
    assert_eq!(again.text("/image/digest"), built.text("/image/digest"));
    world.finish(&[&second]);
}

/// Whether the worker says that it reaches its history.
fn has_history(worker: &Worker) -> bool {
    let report: Value = serde_json::from_str(&worker.get("/readyz").1).expect("JSON");
    let needs = report["needs"].as_array().expect("a list");
    let history = needs.iter().find(|need| need["name"] == "history").expect("it is told of");
    history["ready"] == true
}

#[test]
fn servers_of_a_private_authority_are_trusted_where_it_is_named_and_nowhere_else() {
    let authority = Authority::new();
    let database = runtime().block_on(Database::new());
    let (plain, data) = (World::new(), database.url());
    let broker = plain.settings["RABBITMQ_URI"].clone();
    let (login, broker) = broker.split_once('@').expect("it has a user");
    let (broker, vhost) = broker.split_once('/').expect("it names a virtual host");
    let (user, data) = data.split_once('@').expect("it has a user");
    let (server, data) = data.split_once('/').expect("it names a database");
    let (forge_front, broker_front, data_front) = runtime().block_on(async {
        (
            authority.front(&["forge.invalid"], Begin::AtOnce, &git_server()).await,
            authority.front(&["localhost"], Begin::AtOnce, broker).await,
            authority.front(&["localhost"], Begin::OnRequest, server).await,
        )
    });
    let names = [("forge.invalid:443", forge_front.address.to_string())];
    let proxy = runtime().block_on(ForwardProxy::start("canary-4b7d-password", &names));
    let login = login.trim_start_matches("amqp://");
    let world = plain
        .with(
            "RABBITMQ_URI",
            &format!("amqps://{login}@localhost:{}/{vhost}", broker_front.address.port()),
        )
        .with(
            "DATABASE_URL",
            &format!("{user}@localhost:{}/{data}?sslmode=verify-full", data_front.address.port()),
        )
        .with("HTTPS_PROXY", &proxy.url())
        .with("GITHUB_URL", "https://forge.invalid");

    // In the file, where no library looks by itself.
    let trusting = format!("SSL_CERT_FILE={}\n", authority.certificate().display());
    let worker = Worker::start_with_file(&world.settings(), "config/.env", &trusting);
    let repo = GitRepo::create(PRIVATE, "trusted");
    repo.commit(&[("Dockerfile", &dockerfile("RUN true"))]);
    let request = with(world.request(&repo), json!({"token": GOOD_TOKEN}));
    world.build(&request).ready();
    assert!(proxy.asked().contains(&"forge.invalid:443".to_owned()), "{:?}", proxy.asked());
    until("the history is in the database", || {
        let (status, builds) = worker.get("/v1/builds");
        (status == 200 && builds.contains(request["uuid"].as_str()?)).then_some(())
    });
    assert!(has_history(&worker));
    world.finish(&[&worker]);

    let world = world.with("RABBITMQ_URI", &World::new().settings["RABBITMQ_URI"]);
    let doubting = world.worker();
    world.publish(&with(world.request(&repo), json!({"token": GOOD_TOKEN})));
    doubting.wait_for_line("invalid peer certificate: UnknownIssuer");
    assert!(!has_history(&doubting), "the database is not trusted either");
    drop(doubting);
}
