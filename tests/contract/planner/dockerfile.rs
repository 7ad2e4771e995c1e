//! What only the real planner does with Dockerfiles: it looks into them.

use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::request::{BuilderKind, PlanRequest};
use image_builder_actors::model::secret::Secret;

use super::world::{Source, plan, real, refusal, source_of_fixture};

fn by(path: &str) -> PlanRequest {
    PlanRequest { dockerfile_path: Some(path.to_owned()), ..PlanRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_path_is_relative_to_the_root_directory_however_it_is_written() {
    let source = source_of_fixture("dockerfile");
    for path in ["docker/Dockerfile.small", "/docker/Dockerfile.small", "./docker/Dockerfile.small"]
    {
        let plan = plan(&real(), &source, by(path)).await;
        assert_eq!(plan.dockerfile, "docker/Dockerfile.small", "{path}");
        assert_eq!(plan.context, source.tree(), "{path}");
    }
    let inside = PlanRequest { root_directory: "docker".into(), ..by("Dockerfile.small") };
    let plan = plan(&real(), &source, inside).await;
    assert_eq!(plan.dockerfile, "Dockerfile.small");
    assert_eq!(plan.context, source.tree().join("docker"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_that_is_a_link_inside_the_context_is_named_by_what_it_links_to() {
    let source = Source::of(&[("docker/Dockerfile.web", "FROM scratch\n")]);
    source.link("Dockerfile", "docker/Dockerfile.web");
    let plan = plan(&real(), &source, PlanRequest::default()).await;
    assert_eq!(plan.builder, BuilderKind::Dockerfile);
    assert_eq!(plan.dockerfile, "docker/Dockerfile.web");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_outside_of_the_context_is_refused() {
    let source = Source::of(&[("Dockerfile", "FROM scratch\n"), ("web/a.txt", "")]);
    source.link("web/Dockerfile", "../Dockerfile");
    source.link("away", source.outside().join("outside"));
    let in_web = |wish: PlanRequest| PlanRequest { root_directory: "web".into(), ..wish };
    for (wish, named) in [
        (in_web(PlanRequest::default()), "`Dockerfile`"),
        (in_web(by("../Dockerfile")), "`../Dockerfile`"),
        (by("../outside"), "`../outside`"),
        (by("/../../etc/passwd"), "`/../../etc/passwd`"),
        (by("away"), "`away`"),
    ] {
        let fault = refusal(&real(), &source, wish).await;
        assert_eq!(fault.reason, Reason::InvalidPlan, "{fault}");
        assert!(fault.message.contains(named), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_that_cannot_be_one_is_refused() {
    let source = Source::of(&[("directory/a", ""), ("empty", " \n\t\n")]);
    source.write("latin1", b"FROM scratch # caf\xe9\n");
    source.write("huge", "#".repeat(1 << 20) + "\nFROM scratch\n");
    for (path, reason) in [
        ("directory", Reason::InvalidPlan),
        ("empty", Reason::InvalidPlan),
        ("latin1", Reason::InvalidPlan),
        ("huge", Reason::TooLarge),
    ] {
        let fault = refusal(&real(), &source, by(path)).await;
        assert_eq!(fault.reason, reason, "{fault}");
        assert!(fault.message.contains(path), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_called_dockerfile_is_not_a_dockerfile() {
    let source = Source::of(&[("Dockerfile/README.md", ""), ("main.py", "print('hello')\n")]);
    let plan = plan(&real(), &source, PlanRequest::default()).await;
    assert_eq!(plan.builder, BuilderKind::Nixpacks);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_cannot_be_passed_on_are_refused() {
    let source = source_of_fixture("dockerfile");
    for name in ["", "A B", "A=B", "A\nRUN x", "$A", "id,required"] {
        let pair = [(name.to_owned(), String::new())];
        let secrets = [(name.to_owned(), Secret::new("s3cr3t"))].into();
        for (field, wish) in [
            ("envs", PlanRequest { envs: pair.clone().into(), ..PlanRequest::default() }),
            ("buildArgs", PlanRequest { build_args: pair.into(), ..PlanRequest::default() }),
            ("secrets", PlanRequest { secrets, ..PlanRequest::default() }),
        ] {
            let fault = refusal(&real(), &source, wish).await;
            assert_eq!(fault.reason, Reason::InvalidPlan, "{name:?}");
            assert!(fault.message.contains(field), "{fault}");
        }
    }
}
