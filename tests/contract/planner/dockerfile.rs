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
async fn a_dockerfile_that_is_a_link_inside_the_context_keeps_its_name() {
    let source = Source::of(&[("docker/Dockerfile.web", "FROM scratch\n")]);
    source.link("Dockerfile", "docker/Dockerfile.web");
    let plan = plan(&real(), &source, PlanRequest::default()).await;
    assert_eq!(plan.builder, BuilderKind::Dockerfile);
    assert_eq!(plan.dockerfile, "Dockerfile", "it has an ignore file of its own");
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
    source.write("utf16", b"\xff\xfeF\0R\0O\0M\0 \0x\0\n\0");
    source.write("huge", "#".repeat(1 << 20) + "\nFROM scratch\n");
    for (path, reason) in [
        ("directory", Reason::InvalidPlan),
        ("empty", Reason::InvalidPlan),
        ("utf16", Reason::InvalidPlan),
        ("huge", Reason::TooLarge),
    ] {
        let fault = refusal(&real(), &source, by(path)).await;
        assert_eq!(fault.reason, reason, "{fault}");
        assert!(fault.message.contains(path), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_that_would_end_the_engine_is_refused() {
    for (text, said) in [
        ("ARG X=1\n", "no stage"),
        ("ARG X=1\rFROM scratch\r", "carriage return"),
        ("FROM scratch AS a\nCOPY --from=b / /\nFROM a AS b\nENV x=1\n", "circle"),
    ] {
        let source = Source::of(&[("Dockerfile", text)]);
        let fault = refusal(&real(), &source, PlanRequest::default()).await;
        assert_eq!(fault.reason, Reason::InvalidPlan, "{fault}");
        assert!(fault.message.contains("`Dockerfile`"), "{fault}");
        assert!(fault.message.contains(said), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_utf8_text_do_not_matter_and_still_make_another_plan() {
    let of_byte = async |byte: u8| {
        let source = Source::empty();
        source.write("Dockerfile", [b"# caf", &[byte][..], b"\nFROM scratch\n"].concat());
        plan(&real(), &source, PlanRequest::default()).await.fingerprint
    };
    assert_ne!(of_byte(0xe9).await, of_byte(0xe8).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_in_lower_case_is_used_where_there_is_no_other() {
    let source = Source::of(&[("dockerfile", "FROM scratch\n"), ("package.json", "{}")]);
    let dockerfile = PlanRequest { builder: Some(BuilderKind::Dockerfile), ..Default::default() };
    for wish in [PlanRequest::default(), dockerfile] {
        let plan = plan(&real(), &source, wish).await;
        assert_eq!(plan.builder, BuilderKind::Dockerfile);
        assert_eq!(plan.dockerfile, "dockerfile");
    }
    source.write("Dockerfile", "FROM scratch\n");
    let with_both = plan(&real(), &source, PlanRequest::default()).await;
    assert_eq!(with_both.dockerfile, "Dockerfile");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containerfile_is_used_only_where_the_request_names_it() {
    let source = Source::of(&[("Containerfile", "FROM scratch\n"), ("main.py", "print(1)\n")]);
    let unnamed = plan(&real(), &source, PlanRequest::default()).await;
    assert_eq!(unnamed.builder, BuilderKind::Nixpacks);
    let named = plan(&real(), &source, by("Containerfile")).await;
    assert_eq!(named.dockerfile, "Containerfile");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_that_declares_what_commit_it_is_of_is_told_and_no_other_plan_depends_on_it() {
    let given = async |text: &str, commit: &str, wish: PlanRequest| {
        let mut source = Source::of(&[("Dockerfile", text)]);
        source.fetched.commit = commit.to_owned();
        let plan = plan(&real(), &source, wish).await;
        (plan.build_args, plan.fingerprint)
    };
    let none = PlanRequest::default;
    let text = "FROM scratch\nARG SOURCE_COMMIT\nARG SOURCE_REF=x SOURCE_COMMIT_TIME\n";
    let (first, of_first) = given(text, "1111", none()).await;
    assert_eq!(first["SOURCE_COMMIT"], "1111");
    assert!(!first["SOURCE_REF"].is_empty());
    assert!(first["SOURCE_COMMIT_TIME"].ends_with('Z'), "{first:?}");
    assert_ne!(given(text, "2222", none()).await.1, of_first);

    let own = [("SOURCE_COMMIT".to_owned(), "mine".to_owned())];
    let wish = PlanRequest { build_args: own.into(), ..none() };
    assert_eq!(given(text, "1111", wish).await.0["SOURCE_COMMIT"], "mine");

    let plain = "FROM scratch\nENV SOURCE_COMMIT=1\n";
    let (args, of_plain) = given(plain, "1111", none()).await;
    assert!(args.is_empty(), "{args:?}");
    assert_eq!(given(plain, "2222", none()).await.1, of_plain);
}
