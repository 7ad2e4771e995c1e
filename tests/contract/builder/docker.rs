//! What only the real engine can show.

use std::os::unix::fs::symlink;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::query_parameters::TagImageOptionsBuilder;
use futures_util::TryStreamExt;
use image_builder::engine::docker::{DockerEngine, DockerSettings, RegistryAuth};
use image_builder::engine::settings::BuildSettings;
use image_builder::planner::{PlannerSettings, SourcePlanner};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::image::{CREATED_LABEL, KEY_LABEL, REVISION_LABEL, SOURCE_LABEL};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::login::RegistryLogin;
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::request::PlanRequest;
use image_builder_actors::model::secret::{Redactor, Secret};
use image_builder_actors::ports::{BuildOrder, ImageBuilder};
use image_builder_actors::testing::conformance::builder::World;
use image_builder_actors::testing::conformance::planner::{Source, plan};
use memchr::memmem;
use serde_json::json;
use tokio::net::TcpListener;

use super::proxy::{Certificates, Proxy};
use super::world::{BASE, DEBIAN, Notes, Output, RealWorld, names_of};
use crate::engine::{Engine, tenancy};
use crate::http_server::{HttpServer, answer};
use crate::registry::server::USER;
use crate::registry::{CLOSED, CLOSED_PASSWORD, OPEN, reference_in, unique};

fn said(output: &[String], line: &str) -> bool {
    output.iter().any(|said| said == line)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_stages_of_the_target_are_built() {
    let world = RealWorld::new().await;
    let mark = unique();
    let mut order = world.order(&[(
        "Dockerfile",
        &format!(
            "FROM {BASE} AS one\nRUN echo {mark} > /one\nFROM {BASE} AS two\n\
             COPY --from=one /one /two\nRUN echo two has $(cat /two)\nFROM two AS three\nRUN exit 9\n"
        ),
    )]);
    order.plan.target = Some("two".to_owned());
    let output = world.output(&order).await;
    assert!(said(&output, &format!("two has {mark}")), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_may_lie_in_a_directory_that_is_ignored() {
    let world = RealWorld::new().await;
    let mark = unique();
    let text = format!("FROM {BASE}\nCOPY app /\nRUN cat /app\n");
    let mut order =
        world.order(&[("ops/app.Dockerfile", &text), (".dockerignore", "ops"), ("app", &mark)]);
    order.plan.dockerfile = "./ops//app.Dockerfile".to_owned();
    let output = world.output(&order).await;
    assert!(said(&output, &mark), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_mount_keeps_its_content_from_build_to_build() {
    let world = RealWorld::new().await;
    let cache = unique();
    let step = |mark: &str| {
        format!("RUN --mount=type=cache,id={cache},target=/c : {mark}; ls /c; touch /c/kept")
    };
    let first = world.output(&world.dockerfile(&step(&unique()))).await;
    assert!(!said(&first, "kept"), "{first:?}");
    let second = world.output(&world.dockerfile(&step(&unique()))).await;
    assert!(said(&second, "kept"), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_why_the_first_step_that_is_run_was_not_in_the_cache() {
    const MISS: &str = "is not taken from the build cache";
    let world = RealWorld::new().await;
    let (user, one, two) = (unique(), unique(), unique());
    let build = |step: &str, mark: &str| {
        let text = format!("FROM {BASE}\nCOPY mark /\nRUN : {user}\n{step}\n");
        let order = world.order(&[("Dockerfile", &text), ("mark", mark)]);
        let reference = ImageReference::for_build(OPEN, &user, "app", "latest");
        let order = BuildOrder { reference, ..order };
        let world = &world;
        async move {
            let notes = Arc::new(Notes::default());
            let log = BuildLog::new("b", Redactor::default()).with_listener(notes.clone());
            world.engine.build(&order, &log).await.expect("the build is good");
            notes.all().into_iter().filter(|line| line.contains(MISS)).collect::<Vec<_>>()
        }
    };
    assert_eq!(build("RUN true", &one).await, [""; 0], "the first build of it");
    assert_eq!(build("RUN true", &one).await, [""; 0], "nothing is run");
    let told = build("RUN true", &two).await;
    let [told] = &told[..] else { panic!("one line: {told:?}") };
    assert!(told.starts_with(&format!("`COPY mark /` {MISS}: a file")), "{told}");
    let told = build("RUN false || true", &two).await;
    let [told] = &told[..] else { panic!("one line: {told:?}") };
    assert!(told.starts_with(&format!("`RUN false || true` {MISS}: it is new")), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_reaches_its_step_and_nothing_else() {
    let world = RealWorld::new().await;
    let secret = format!("canary-4b7d-{}", unique());
    let mut order = world.dockerfile(&format!(
        "RUN --mount=type=secret,id=tok,required=true : {}; \
         cp /run/secrets/tok /tmp/t && wc -c < /tmp/t && rm /tmp/t && cat /run/secrets/tok\nRUN ls /run/secrets || true",
        unique()
    ));
    order.plan.secrets.insert("tok".to_owned(), Secret::new(secret.clone()));
    let (result, progress) = world.build(&order).await;
    let image = result.expect("the build is good");
    let tail = progress.tail();
    assert!(said(&tail, &secret.len().to_string()), "{tail:?}");
    assert!(said(&tail, "[secret]") && !tail.join("\n").contains(&secret), "{tail:?}");

    let docker = world.engine.docker();
    let history = docker.image_history(&image.id).await.expect("a history");
    assert!(!format!("{history:?}").contains(&secret));
    let saved: Vec<_> = docker.export_image(&image.id).try_collect().await.expect("the image");
    let saved = saved.concat();
    assert!(memmem::find(&saved, b"bin/s").is_some(), "the image was not read");
    assert_eq!(memmem::find(&saved, secret.as_bytes()), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_secret_that_the_request_lacks_is_named() {
    let world = RealWorld::new().await;
    let step = "RUN --mount=type=secret,id=npmrc,required=true cat /run/secrets/npmrc";
    let fault = world.fault(&world.dockerfile(&format!("ENV A={}\n{step}", unique()))).await;
    assert_eq!(fault.reason, Reason::InvalidPlan, "{fault}");
    assert!(fault.message.contains("`npmrc`"), "{}", fault.message);

    let optional =
        world.dockerfile("RUN --mount=type=secret,id=npmrc ls /run/secrets || echo none");
    world.output(&optional).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn build_arguments_and_labels_reach_the_image() {
    let world = RealWorld::new().await;
    let mut order =
        world.dockerfile("ARG GREETING\nRUN echo \"it says $GREETING\"\nLABEL a=dockerfile b=2");
    let greeting = format!("hello & 100% \"wörld\" {}", unique());
    order.plan.build_args.insert("GREETING".to_owned(), greeting.clone());
    order.labels.insert("a".to_owned(), "order's \"own\"".to_owned());
    let (result, progress) = world.build(&order).await;
    let image = result.expect("the build is good");
    assert!(said(&progress.tail(), &format!("it says {greeting}")), "{:?}", progress.tail());
    let image = world.engine.docker().inspect_image(&image.id).await.expect("the image is there");
    let labels = image.config.and_then(|config| config.labels).unwrap_or_default();
    assert_eq!(labels.get("a").map(String::as_str), Some("order's \"own\""));
    assert_eq!(labels.get("b").map(String::as_str), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn build_arguments_that_are_too_long_are_the_users_fault() {
    let world = RealWorld::new().await;
    let mut order = world.dockerfile("ARG LONG");
    order.plan.build_args.insert("LONG".to_owned(), "x".repeat(40_000));
    world.output(&order).await;
    order.plan.build_args.insert("LONG".to_owned(), "x".repeat(70_000));
    assert_eq!(world.fault(&order).await.reason, Reason::InvalidPlan);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_context_arrives_as_it_is_but_for_what_is_ignored() {
    let world = RealWorld::new().await;
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(100));
    let order = world.order(&[
        (
            "Dockerfile",
            &format!("FROM {BASE}\nCOPY . /c\nRUN cd /c && find . -type f -exec printf 'file %s\\0' {{}} ';' | sort -z | tr '\\n\\0' '!\\n'; readlink link; stat -c '%a %u' 'a b'\n"),
        ),
        (".dockerignore", "*.log\nnode_modules\n!keep.log\n.dockerignore"),
        ("a b", &unique()),
        ("ünï", ""),
        ("new\nline", ""),
        (&long, ""),
        ("x.log", ""),
        ("keep.log", ""),
        ("node_modules/m/index.js", ""),
    ]);
    symlink("/etc/passwd", order.plan.context.join("link")).expect("a link");
    let output = world.output(&order).await;
    let files: Vec<&str> = output.iter().filter_map(|line| line.strip_prefix("file ./")).collect();
    let mut wanted = ["Dockerfile", "a b", &long, "keep.log", "new!line", "ünï"];
    wanted.sort_unstable();
    let mut got = files.clone();
    got.sort_unstable();
    assert_eq!(got, wanted);
    assert!(said(&output, "/etc/passwd"), "the link was followed: {output:?}");
    assert!(said(&output, "644 0"), "{output:?}");
}

/// The program in an image that this machine's `make` made over a cache mount.
async fn made(
    world: &RealWorld,
    cache: &str,
    (commit, created): (&str, &str),
    files: &[(&str, &str)],
    argument: &str,
) -> String {
    let dockerfile = format!(
        "FROM {DEBIAN}\nARG A\nWORKDIR /src\nCOPY Makefile make part.txt ./\nCOPY main.txt ./\n\
         RUN --mount=type=cache,id={cache},target=/out ./make && cp /out/program /program\n"
    );
    let mut all = vec![
        ("Dockerfile", dockerfile.as_str()),
        ("Makefile", "/out/program: main.txt part.txt\n\tcat main.txt part.txt > /out/program\n"),
    ];
    all.extend(files);
    let mut order = world.order(&all);
    std::fs::copy("/usr/bin/make", order.plan.context.join("make")).expect("`make` is installed");
    for (label, text) in [(CREATED_LABEL, created), (SOURCE_LABEL, cache), (REVISION_LABEL, commit)]
    {
        order.labels.insert(label.to_owned(), text.to_owned());
    }
    order.plan.build_args.insert("A".to_owned(), argument.to_owned());
    let (built, progress) = world.build(&order).await;
    let image = built.unwrap_or_else(|fault| panic!("{fault}\n{}", progress.tail().join("\n")));
    let complaint = progress.tail().into_iter().find(|line| line.contains("in the future"));
    assert_eq!(complaint, None);
    let run = ["run", "--rm", "--network", "none", &image.id, "cat", "/program"];
    let ran = std::process::Command::new("/usr/bin/docker").args(run).output();
    String::from_utf8(ran.expect("docker is installed").stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_make_makes_over_a_cache_mount_is_of_its_commit_whatever_time_the_commit_tells() {
    let world = RealWorld::new().await;
    let (cache, run) = (unique(), unique());
    for (main, part, created, argument) in [
        ("1", "a", "2024-03-01T00:00:00Z", ""),
        // Made before the first one was built, and says to be older still.
        ("2", "a", "2024-02-01T00:00:00Z", ""),
        ("1", "a", "2024-03-01T00:00:00Z", ""),
        ("2", "a", "2024-02-01T00:00:00Z", ""),
        // Back again by a step that has to run anew, on layers that are there.
        ("1", "a", "2024-03-01T00:00:00Z", "new"),
        ("2", "a", "2024-02-01T00:00:00Z", "new"),
        ("3", "b", "2099-01-01T00:00:00Z", ""),
        ("1", "b", "2098-01-01T00:00:00Z", ""),
    ] {
        let commit = format!("{main}{part}");
        let main = format!("{main} of {run}\n");
        let files = [("main.txt", main.as_str()), ("part.txt", part)];
        let program = made(&world, &cache, (&commit, created), &files, argument).await;
        assert_eq!(program, format!("{main}{part}"), "{commit}, {created}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_of_a_context_is_of_the_future_or_of_another_time_than_the_others() {
    let world = RealWorld::new().await;
    let order = world.order(&[
        (
            "Dockerfile",
            &format!(
                "FROM {DEBIAN}\nCOPY d /d\nRUN touch /new && for f in /d/*; do test $f -ot /new && \
             stat -c '%y' $f; done | sort -u | wc -l\n"
            ),
        ),
        ("d/f", &unique()),
        ("d/g", ""),
    ]);
    let output = world.output(&order).await;
    assert!(said(&output, "1"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_since_the_last_build_is_built_and_nothing_that_is_gone() {
    let world = RealWorld::new().await;
    let (one, two) = (unique(), unique());
    let order = world.order(&[
        ("Dockerfile", &format!("FROM {BASE}\nCOPY . /c\nRUN cat /c/version; ls /c\n")),
        ("version", &format!("{one}\n")),
        ("gone", ""),
        ("kept", ""),
    ]);
    let output = world.output(&order).await;
    assert!(said(&output, &one) && said(&output, "gone"), "{output:?}");
    // Of the same length, in a tree that was checked out anew.
    for (name, text) in [("version", format!("{two}\n")), ("kept", String::new())] {
        let path = order.plan.context.join(name);
        std::fs::remove_file(&path).expect("it is there");
        std::fs::write(path, text).expect("a file");
    }
    std::fs::remove_file(order.plan.context.join("gone")).expect("it is there");
    let output = world.output(&order).await;
    assert!(said(&output, &two) && said(&output, "kept"), "{output:?}");
    assert!(!said(&output, "gone"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_sent_is_named() {
    let world = RealWorld::new().await;
    let order = world.order(&[("Dockerfile", &format!("FROM {BASE}\nCOPY . /c\n"))]);
    let socket = std::os::unix::net::UnixListener::bind(order.plan.context.join("sock"));
    let fault = world.fault(&order).await;
    drop(socket);
    assert_eq!(fault.reason, Reason::InvalidPlan, "{fault}");
    assert!(fault.message.contains("`sock`"), "{}", fault.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_that_leads_to_the_hosts_files_is_refused() {
    let world = RealWorld::new().await;
    let order = world.order(&[("x", "")]);
    symlink("/etc/passwd", order.plan.context.join("Dockerfile")).expect("a link");
    let fault = world.fault(&order).await;
    assert_eq!(fault.reason, Reason::InvalidPlan, "{fault}");
    assert!(!fault.message.contains("root"), "{}", fault.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_dockerfiles_that_the_engine_builds_are_planned_too() {
    let world = RealWorld::new().await;
    for text in [
        "\u{feff}from scratch\r\nENV a=1\r\n".as_bytes(),
        b"\n \t\n# comment\n   # another\n\tFROM scratch\nENV a=1",
        b"ARG A=1 \\\n  # comment\n\n  B=2\nARG C\nFROM scratch\nENV a=1\n",
        b"FR\\\nOM scratch\nENV a=1\n",
        b"# escape=`\nARG A=C:\\\nFROM scratch\nENV a=1\n",
        b"ARG A=\\\\\nFROM scratch\nENV a=1\n",
        b"# caf\xe9\nFROM scratch\nLABEL place=\"caf\xe9\"\n",
        b"ARG A=scratch\nFROM ${A} AS a\nCOPY Dockerfile /a\nFROM ${A}\nCOPY --from=0 /a /b\n",
        b"FROM scratch AS a\nENV a=1\nFROM a AS a\nCOPY Dockerfile /a\n",
    ] {
        let shown = String::from_utf8_lossy(text);
        let source = Source::empty();
        source.write("Dockerfile", text);
        let planner = SourcePlanner::new(PlannerSettings::new(Limits::default(), Secret::new("x")));
        let mut order = world.order(&[]);
        order.plan = plan(&planner, &source, PlanRequest::default()).await;
        let (built, _) = world.build(&order).await;
        built.unwrap_or_else(|fault| panic!("{shown}: {fault}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_image_s_registry_that_does_not_answer_is_the_service_s_fault() {
    let world = RealWorld::new().await;
    let refusing = HttpServer::answering(|_| answer(503, &[], "")).await;
    // Takes connections, and closes them.
    let closing = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let closing_at = closing.local_addr().expect("an address");
    let closer = tokio::spawn(async move {
        while let Ok((connection, _)) = closing.accept().await {
            drop(connection);
        }
    });
    for (registry, told) in [
        ("127.0.0.1:9".to_owned(), "does not answer: connection refused"),
        (refusing.host(), "answers that it cannot: 503 Service Unavailable"),
        (closing_at.to_string(), "does not answer"),
    ] {
        let text = format!("FROM {registry}/no/such:1\nENV a=1\n");
        let fault = world.fault(&world.order(&[("Dockerfile", &text)])).await;
        assert_eq!(fault.reason, Reason::RegistryFailed, "{registry}: {fault}");
        assert!(fault.message.contains(told), "{registry}: {fault}");
        assert!(fault.message.contains(&format!("`{registry}/no/such:1`")), "{registry}: {fault}");
    }
    closer.abort();
}

/// Its registry has none either.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_image_that_the_engine_has_for_another_platform_is_not_taken() {
    let world = RealWorld::new().await;
    let name = reference_in(OPEN);
    let options = TagImageOptionsBuilder::new().repo(&name.name()).tag(&name.tag).build();
    world.engine.docker().tag_image(BASE, Some(options)).await.expect("the engine names the image");
    let order = |platform: &str| {
        let text = format!("FROM --platform={platform} {name}\nCOPY mark /\n");
        world.order(&[("Dockerfile", &text), ("mark", &unique())])
    };
    let foreign = world.build(&order("linux/s390x")).await.0;
    let own = world.build(&order("$BUILDPLATFORM")).await.0;
    world.engine.remove_image(&name.to_string()).await.expect("the engine forgets the name");
    let fault = foreign.expect_err("it is of another platform");
    assert_eq!(fault.reason, Reason::BuildFailed, "{fault}");
    assert!(fault.message.contains(&name.to_string()), "{fault}");
    own.unwrap_or_else(|fault| panic!("{fault}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_dockerfile_tell_what_is_wrong_with_it() {
    let world = RealWorld::new().await;
    let table = [
        ("RUNN true", None, Reason::InvalidPlan, "RUNN"),
        ("ENV", None, Reason::InvalidPlan, "ENV"),
        ("RUN true", Some("nowhere"), Reason::InvalidPlan, "nowhere"),
        ("COPY nothere /x", None, Reason::BuildFailed, "\"/nothere\" not found"),
        (
            "FROM localhost:5000/no/such:1",
            None,
            Reason::BuildFailed,
            "`localhost:5000/no/such:1`, which was not found",
        ),
        ("FROM localhost:5001/no/such:1", None, Reason::BuildFailed, "may not be pulled"),
        ("RUN :; sh -c 'kill -9 $$'; exit $?", None, Reason::BuildFailed, "exit code 137"),
        ("USER nobody-here\nRUN true", None, Reason::BuildFailed, "nobody-here"),
        ("WORKDIR /x\nRUN nosuchcommand", None, Reason::BuildFailed, "command not found"),
    ];
    for (steps, target, reason, message) in table {
        let mut order = world.dockerfile(steps);
        order.plan.target = target.map(str::to_owned);
        let fault = world.fault(&order).await;
        assert_eq!(fault.reason, reason, "{steps}: {fault}");
        assert!(fault.message.contains(message), "{steps}: {}", fault.message);
        assert_eq!(fault.step.is_some(), reason == Reason::BuildFailed, "{steps}: {fault:?}");
        assert!(!fault.message.contains("/var/lib"), "{}", fault.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_failed_step_wrote_is_told_though_another_writes_more() {
    let world = RealWorld::new().await;
    let order = world.order(&[(
        "Dockerfile",
        &format!(
            "FROM {BASE} AS loud\nRUN : {0}; for i in $(seq 1 100); do seq 1 100; sleep 0.03; done; touch /x\n\
             FROM {BASE} AS bad\nRUN : {0}; echo the cause >&2; sleep 1; seq 1 1000; exit 3\n\
             FROM scratch\nCOPY --from=loud /x /x\nCOPY --from=bad /x /y\n",
            unique()
        ),
    )]);
    let (result, progress) = world.build(&order).await;
    let fault = result.expect_err("a step fails");
    assert!(fault.message.contains("exit code 3"), "{fault}");
    assert!(said(&progress.tail(), "the cause"), "{:?}", progress.tail());
    assert!(said(&progress.tail(), "1000"), "{:?}", progress.tail());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_leaves_out_of_a_fault_is_told() {
    let world = RealWorld::new().await;
    let mounts =
        (0..8).map(|n| format!("--mount=type=cache,id=cache-of-something-{n},target=/c/{n} "));
    let mounts: String = mounts.collect();
    for (dockerfile, told) in [
        (format!("FROM {BASE}\nRUN {mounts} : {}; exit 3\n", unique()), "Step `RUN : ".to_owned()),
        (
            format!("FROM {BASE}\nCOPY d/f.txt /\n"),
            "`.dockerignore` keeps it out of the build context by the rule `*/*.txt`".to_owned(),
        ),
        (
            format!("FROM {BASE}\nRUN --mount=type=bind,source=d/f.txt,target=/f true\n"),
            "by the rule `*/*.txt`".to_owned(),
        ),
        (
            "ARG BASE_TAG\nFROM busybox:${BASE_TAG}\n".to_owned(),
            "`ARG BASE_TAG` has no value".to_owned(),
        ),
        ("ARG IMAGE\nFROM $IMAGE\n".to_owned(), "`ARG IMAGE` has no value".to_owned()),
    ] {
        let files = [("Dockerfile", &*dockerfile), (".dockerignore", "*/*.txt\n"), ("d/f.txt", "")];
        let fault = world.fault(&world.order(&files)).await;
        assert!(fault.message.contains(&told), "{dockerfile}: {fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_after_an_engine_is_told_with_its_version() {
    let world = RealWorld::new().await;
    let engine = world.engine.docker().version().await.expect("the engine answers");
    let version = engine.version.expect("it has a version");
    if !version.starts_with("20.") {
        return;
    }
    for (steps, feature) in
        [("COPY --link Dockerfile /x", "`--link`"), ("RUN <<EOF\nset -e\nEOF", "here-documents")]
    {
        let fault = world.fault(&world.dockerfile(steps)).await;
        assert_eq!(fault.reason, Reason::InvalidPlan, "{fault}");
        for part in [feature, &format!("Docker {version}"), "# syntax="] {
            assert!(fault.message.contains(part), "{fault}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_that_no_engine_builds_is_the_users_fault_on_every_engine() {
    let world = RealWorld::new().await;
    for text in [
        "FROM scratch\nEXPOSE notaport\n",
        "FROM scratch\nUNKNOWN key=1\n",
        "FROM scratch\nHEALTHCHECK --nosuch=1 CMD x\n",
        "FROM scratch\nCOPY --from=b /x /x\nFROM scratch AS b\nCOPY --from=0 /x /x\n",
        "FROM scratch AS a\nCOPY --from=a /x /x\n",
        "FROM scratch\nCOPY one\n",
        "FROM scratch\nLABEL =x\n",
        "FROM scratch AS Bad/Name\n",
        "FROM scratch\nSTOPSIGNAL nosuch\n",
        "FROM scratch\nUSER\n",
    ] {
        let fault = world.fault(&world.order(&[("Dockerfile", text)])).await;
        assert_eq!(fault.reason, Reason::InvalidPlan, "{text}: {fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_read_like_the_engines_own_troubles_are_the_users_fault() {
    let world = RealWorld::new().await;
    for name in ["context canceled", "no active session", "transport is closing"] {
        let step = format!("COPY [\"{name}\", \"no space left on device\"]");
        let fault = world.fault(&world.dockerfile(&step)).await;
        assert_eq!(fault.reason, Reason::BuildFailed, "{fault}");
        assert!(fault.message.contains(&format!("\"/{name}\" not found")), "{}", fault.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_end_that_cannot_be_had_is_told_as_such() {
    let world = RealWorld::new().await;
    let dockerfile = format!("# syntax=localhost:5000/no/frontend:1\nFROM {BASE}\n");
    let fault = world.fault(&world.order(&[("Dockerfile", &dockerfile)])).await;
    assert_eq!(fault.reason, Reason::BuildFailed, "{fault}");
    for part in ["# syntax=", "`localhost:5000/no/frontend:1`", "not found"] {
        assert!(fault.message.contains(part), "{}", fault.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_is_cut_and_its_lines_too() {
    let limits = Limits { output_bytes: 100_000, ..Limits::default() };
    let world = RealWorld::with(BuildSettings { limits, ..BuildSettings::default() }).await;
    // The engine itself clips what one step writes at 1 or 2 MiB.
    let order = world.dockerfile(&format!(
        "RUN : {0}; head -c 500000 /dev/zero | tr '\\0' x; echo; echo after the long line\n\
         RUN : {0}; seq 1 100000",
        unique()
    ));
    let heard = Arc::new(Output::default());
    let progress = BuildLog::new("b", Redactor::default()).with_listener(heard.clone());
    world.engine.build(&order, &progress).await.expect("it is built");
    let output = heard.all();
    assert!(output.iter().any(|line| line.contains("100000 bytes")), "{:?}", output.last());
    assert!(output.iter().all(|line| line.len() <= BuildLog::LINE_BYTES + 10));
    assert!(output.iter().map(String::len).sum::<usize>() < 110_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_builds_see_only_their_own_secrets() {
    let world = RealWorld::new().await;
    let orders: Vec<_> = (0..4)
        .map(|n| {
            let mut order = world.dockerfile(&format!(
                "RUN --mount=type=secret,id=which : {}; sha256sum < /run/secrets/which; exit 4",
                unique()
            ));
            order.plan.secrets.insert("which".to_owned(), Secret::new(format!("secret {n}")));
            order
        })
        .collect();
    let results = futures_util::future::join_all(orders.iter().map(|o| world.build(o))).await;
    for (order, (result, progress)) in orders.iter().zip(results) {
        assert_eq!(result.map_err(|fault| fault.reason), Err(Reason::BuildFailed));
        let digest = <sha2::Sha256 as sha2::Digest>::digest(order.plan.secrets["which"].expose());
        let line = format!("{}  -", image_builder_actors::model::digest::hex(&digest));
        assert!(said(&progress.tail(), &line), "{:?}", progress.tail());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_without_network_has_none() {
    let network = Some("none".to_owned());
    let world = RealWorld::with(BuildSettings { network, ..BuildSettings::default() }).await;
    let output =
        world.output(&world.dockerfile(&format!("RUN : {}; ls /sys/class/net", unique()))).await;
    assert!(said(&output, "lo") && !said(&output, "eth0"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_base_image_is_pulled_with_the_credential_of_the_request_or_of_docker_s_own_file()
{
    let auth = Some(Arc::new(RegistryAuth {
        host: CLOSED.to_owned(),
        username: USER.to_owned(),
        password: Secret::new(CLOSED_PASSWORD),
    }));
    let settings = BuildSettings { push_auth: auth, ..BuildSettings::default() };
    let world = RealWorld::with(settings).await;
    let base = private_base(&world).await;
    let mut order = world.order(&[("Dockerfile", &format!("FROM {base}\nLABEL x=y\n"))]);
    let login = RegistryLogin { username: USER.to_owned(), password: Secret::new(CLOSED_PASSWORD) };
    order.plan.registry_auth.insert(CLOSED.to_owned(), login);
    world.output(&order).await;

    let directory = tempfile::tempdir().expect("a directory");
    let auth = STANDARD.encode(format!("{USER}:{CLOSED_PASSWORD}"));
    let file = json!({"auths": {CLOSED: {"auth": auth}}}).to_string();
    std::fs::write(directory.path().join("config.json"), file).expect("written");
    let docker_config = Some(directory.path().to_owned());
    let by_file = BuildSettings { docker_config, ..BuildSettings::default() };
    let own_registry = Some(CLOSED.to_owned());
    let withheld = BuildSettings { own_registry, ..by_file.clone() };
    let by_file = RealWorld::with(by_file).await;
    let dockerfile = format!("FROM {base}\nLABEL y=z\n");
    by_file.output(&by_file.order(&[("Dockerfile", &dockerfile)])).await;
    let other = format!("FROM {}\n", base.with_tag("2"));
    let withheld = RealWorld::with(withheld).await;
    let fault = withheld.fault(&withheld.order(&[("Dockerfile", &other)])).await;
    assert!(fault.message.contains("may not be pulled"), "{}", fault.message);

    let anonymous = RealWorld::new().await;
    let fault = anonymous.fault(&anonymous.order(&[("Dockerfile", &other)])).await;
    assert_eq!(fault.reason, Reason::BuildFailed);
    assert!(fault.message.contains("may not be pulled"), "{}", fault.message);
}

/// Pushes a small image to the registry that wants a credential; the engine does not keep it.
async fn private_base(world: &RealWorld) -> ImageReference {
    let mut engine = Engine::connect().await;
    let (image, reference) = (engine.image().await, reference_in(CLOSED));
    let progress = BuildLog::new("a base image", Redactor::default());
    world.engine.push(&image, &reference, &progress).await.expect("the registry takes it");
    reference
}

#[tokio::test(flavor = "multi_thread")]
async fn a_built_image_is_found_again_by_its_key() {
    let world = RealWorld::new().await;
    let order = world.dockerfile(&format!("RUN echo {}", unique()));
    let find = || world.engine.find(&order.key, &order.reference);
    assert_eq!(find().await, Ok(None));
    let image = world.build(&order).await.0.expect("the build is good");
    assert_eq!(find().await, Ok(Some(image)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_has_one_name_that_people_read_and_nobody_guesses() {
    let world = RealWorld::new().await;
    let order = world.dockerfile(&format!("RUN echo {}", unique()));
    let image = world.build(&order).await.0.expect("the build is good");
    let names = names_of(&world.engine, &image.id).await;
    let repository = format!("image-builder.local/{}", order.reference.repository);
    let commit = &order.reference.tag[..7];
    let random = names[0].strip_prefix(&format!("{repository}:{commit}-")).expect("the name");
    assert!(names.len() == 1 && random.len() == 12, "{names:?}");
    for guessable in [order.key.as_str(), &image.id, &order.build_id] {
        assert!(!guessable.contains(random), "{names:?} {guessable}");
    }

    // Built once more all from the cache, it is the same image.
    let again = world.build(&order).await.0.expect("the build is good");
    assert_eq!(again.id, image.id);
    let names = names_of(&world.engine, &image.id).await;
    assert!(names.len() == 1 && names[0].starts_with(&repository), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_images_of_a_key_the_last_one_is_found_and_each_has_its_name() {
    let world = RealWorld::new().await;
    let order = world.dockerfile(&format!("RUN echo {}", unique()));
    let first = world.build(&order).await.0.expect("the build is good");
    std::fs::write(
        order.plan.context.join("Dockerfile"),
        format!("FROM {BASE}\nRUN echo {}\n", unique()),
    )
    .expect("a file");
    let second = world.build(&order).await.0.expect("the build is good");
    assert_ne!(first.id, second.id);
    let found = world.engine.find(&order.key, &order.reference).await;
    assert_eq!(found, Ok(Some(second.clone())));
    for image in [first, second] {
        assert_eq!(names_of(&world.engine, &image.id).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_alone_passes_no_image_off_as_one_of_somebody_else() {
    let world = RealWorld::new().await;
    let theirs = world.dockerfile(&format!("RUN echo {}", unique()));
    // What a front end of a stranger's could write into the image.
    let mut forged = world.dockerfile(&format!("RUN echo {}", unique()));
    forged.labels.insert(KEY_LABEL.to_owned(), theirs.key.as_str().to_owned());
    world.build(&forged).await.0.expect("the build is good");
    assert_eq!(world.engine.find(&theirs.key, &theirs.reference).await, Ok(None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_dropped_while_it_uploads_leaves_no_walk_and_no_image() {
    let world = RealWorld::new().await;
    let order = world.dockerfile("COPY big /");
    let big = std::fs::File::create(order.plan.context.join("big")).expect("a file");
    // A hole: as long as an upload that takes minutes.
    big.set_len(200 << 30).expect("a sparse file");
    let progress = BuildLog::new(&order.build_id, Redactor::default());
    let build = ImageBuilder::build(&world.engine, &order, &progress);
    let early = tokio::time::timeout(std::time::Duration::from_millis(500), build).await;
    assert!(early.is_err(), "{early:?}");
    let context = order.plan.context.clone();
    let open = move || {
        let files = std::fs::read_dir("/proc/self/fd").expect("the files of this process");
        files
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path.starts_with(&context)))
    };
    drop(big);
    let closed = async {
        while open() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), closed)
        .await
        .expect("the tree is no longer read");
    assert_eq!(world.engine.find(&order.key, &order.reference).await, Ok(None));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_comes_up_later_is_found_and_works_over_tcp() {
    let world = RealWorld::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    drop(listener);
    let host = format!("tcp://{address}");
    let settings = DockerSettings {
        host,
        builds: BuildSettings { tenancy: tenancy(), ..BuildSettings::default() },
        ..DockerSettings::default()
    };
    let engine = DockerEngine::connect(settings).expect("good settings");
    let down = engine.ping().await.expect_err("nothing listens yet");
    assert_eq!(down.reason, Reason::EngineDown);

    let _proxy = Proxy::start(address, None).await;
    engine.ping().await.expect("it is up");
    let mut order = world
        .dockerfile(&format!("RUN --mount=type=secret,id=s : {}; cat /run/secrets/s", unique()));
    order.plan.secrets.insert("s".to_owned(), Secret::new("over tcp"));
    let progress = BuildLog::new(&order.build_id, Redactor::default());
    engine.build(&order, &progress).await.expect("the build is good");
    assert!(said(&progress.tail(), "over tcp"), "{:?}", progress.tail());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_goes_away_during_a_build_is_down() {
    let world = RealWorld::new().await;
    let free = "127.0.0.1:0".parse().expect("an address");
    let proxy = Proxy::start(free, None).await;
    let host = format!("tcp://{}", proxy.address);
    let settings = DockerSettings {
        host,
        builds: BuildSettings { tenancy: tenancy(), ..BuildSettings::default() },
        ..DockerSettings::default()
    };
    let engine = DockerEngine::connect(settings).expect("good settings");
    let order = world.endless();
    let progress = BuildLog::new(&order.build_id, Redactor::default());
    let gone = async {
        world.until_running(&order).await;
        drop(proxy);
    };
    let (result, ()) = tokio::join!(engine.build(&order, &progress), gone);
    let fault = result.expect_err("its engine is gone");
    assert_eq!(fault.reason, Reason::EngineDown, "{fault}");
    world.until_stopped(&order).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_behind_tls_is_told_by_its_certificate_and_tells_its_client_by_one() {
    let world = RealWorld::new().await;
    let certificates = Certificates::make();
    let free = "127.0.0.1:0".parse().expect("an address");
    let proxy = Proxy::start(free, Some(certificates.acceptor())).await;
    let settings = DockerSettings {
        host: format!("tcp://{}", proxy.address),
        tls_verify: true,
        cert_path: Some(certificates.directory().to_owned()),
        builds: BuildSettings { tenancy: tenancy(), ..BuildSettings::default() },
        ..DockerSettings::default()
    };
    let engine = DockerEngine::connect(settings.clone()).expect("good settings");
    let order = world.dockerfile(&format!("RUN echo {}", unique()));
    let progress = BuildLog::new(&order.build_id, Redactor::default());
    engine.build(&order, &progress).await.expect("the build is good");

    let strangers = Certificates::make();
    let cert_path = Some(strangers.directory().to_owned());
    let engine = DockerEngine::connect(DockerSettings { cert_path, ..settings.clone() })
        .expect("good settings");
    let fault = engine.ping().await.expect_err("its certificate is not of this authority");
    assert_eq!(fault.reason, Reason::EngineDown, "{fault}");

    let cert_path = Some("/nonexistent".into());
    let error = DockerEngine::connect(DockerSettings { cert_path, ..settings }).err();
    assert!(error.is_some_and(|error| error.to_string().contains("/nonexistent/ca.pem")));
}
