use serde_json::json;

use super::*;
use crate::model::request::BuilderKind;

fn rules() -> Rules {
    Rules { forge_url: "https://github.com".to_owned(), limits: Limits::default() }
}

fn read(body: &Value) -> Result<BuildRequest, Box<Rejected>> {
    parse(body.to_string().as_bytes(), "id", &rules())
}

fn fault(body: &Value) -> Fault {
    read(body).expect_err("the request breaks a rule").fault
}

#[test]
fn the_smallest_request_builds_the_default_branch() {
    let request = read(&json!({"userID": "u", "repo": "o/n"})).expect("a good request");
    assert_eq!(request.target, Target::DefaultBranch);
    assert_eq!(request.application_id, "n");
    assert!(request.token.is_none() && !request.force && request.may_reuse());
}

#[test]
fn each_type_takes_the_ref_that_it_asks_for() {
    let target = |kind: &str, value: &str| {
        let mut body = json!({"userID": "u", "repo": "o/n", "type": kind});
        body[kind] = json!(value);
        read(&body).expect("a good request").target
    };
    assert_eq!(target("branch", "refs/heads/feature/x"), Target::Branch("feature/x".to_owned()));
    assert_eq!(target("tag", "v1.0"), Target::Tag("v1.0".to_owned()));
    assert_eq!(target("release", "latest"), Target::Release("latest".to_owned()));
    assert_eq!(
        target("commit", "ABCDEF1"),
        Target::Commit { id: "abcdef1".to_owned(), branch: None }
    );
}

#[test]
fn the_repository_may_be_its_url_at_the_forge() {
    for repo in [
        "o/n",
        "o/n.git",
        "https://github.com/o/n",
        "https://github.com/o/n.git",
        "http://GitHub.com/o/n/",
    ] {
        let request = read(&json!({"userID": "u", "repo": repo})).expect("a good request");
        assert_eq!(request.repo.to_string(), "o/n");
    }
}

#[test]
fn a_repository_elsewhere_is_a_forbidden_source() {
    for repo in ["https://example.com/o/n", "file:///etc/passwd", "https://github.com.evil.org/o/n"]
    {
        assert_eq!(fault(&json!({"userID": "u", "repo": repo})).reason, Reason::ForbiddenSource);
    }
}

#[test]
fn a_repository_that_is_no_name_is_invalid() {
    for repo in ["n", "o/n/x", "../n", "o/..", "o/", "/n", "o/n m", "-o/n", "o/n\n"] {
        let body = json!({"userID": "u", "repo": repo});
        if repo.trim() != repo {
            continue;
        }
        assert_eq!(fault(&body).reason, Reason::InvalidRequest, "{repo:?}");
    }
}

#[test]
fn a_credential_in_the_url_is_refused_and_not_repeated() {
    let rejected = read(&json!({"userID": "u", "repo": "https://me:hunter2@github.com/o/n"}))
        .expect_err("a credential in a URL");
    assert!(!format!("{rejected:?}").contains("hunter2"));
}

#[test]
fn the_older_shape_means_the_same() {
    let body = json!({
        "applicationID": "a",
        "pullInfo": {"userID": "u", "token": "t", "repo": "o/n", "connector": "github",
                     "branch": "dev", "commit": "latest"},
        "buildPlan": {"builder": "docker"},
    });
    let request = read(&body).expect("a good request");
    assert_eq!(request.target, Target::Branch("dev".to_owned()));
    assert_eq!(request.application_id, "a");
    assert_eq!(request.plan.builder, Some(BuilderKind::Dockerfile));
    assert_eq!(request.token, Some(Secret::new("t")));
}

use crate::model::secret::Secret;

#[test]
fn the_older_shape_pins_a_commit_on_its_branch() {
    let body =
        json!({"pullInfo": {"userID": "u", "repo": "o/n", "branch": "dev", "commit": "abc1234"}});
    let target = read(&body).expect("a good request").target;
    assert_eq!(target, Target::Commit { id: "abc1234".to_owned(), branch: Some("dev".to_owned()) });
}

#[test]
fn a_redriven_request_names_the_build_that_was_given_up() {
    let body = |old: Value| json!({"userID": "u", "repo": "o/n", "redriveOf": old});
    let redriven = read(&body(json!("old-1"))).expect("a good request");
    assert_eq!(redriven.redrive_of.as_deref(), Some("old-1"));
    assert_eq!(read(&body(Value::Null)).expect("a good request").redrive_of, None);
    for bad in [json!("x".repeat(256)), json!(7)] {
        assert!(fault(&body(bad)).message.contains("`redriveOf`"));
    }
}

#[test]
fn every_broken_rule_is_named_in_one_fault() {
    let fault = fault(&json!({
        "userID": 7, "repo": "nope", "force": "yes", "type": "branch",
        "buildPlan": {"envs": 1, "nixPkgs": ["a b"], "secrets": {"k": {}}},
    }));
    assert_eq!(fault.reason, Reason::InvalidRequest);
    for name in ["userID", "repo", "force", "branch", "envs", "nixPkgs", "secrets"] {
        assert!(fault.message.contains(name), "{name} is missing in: {}", fault.message);
    }
}

#[test]
fn what_this_version_does_not_know_is_unsupported() {
    for body in [
        json!({"userID": "u", "repo": "o/n", "connector": "svn"}),
        json!({"userID": "u", "repo": "o/n", "type": "pullRequest"}),
        json!({"userID": "u", "repo": "o/n", "buildPlan": {"builder": "magic"}}),
    ] {
        assert_eq!(fault(&body).reason, Reason::Unsupported);
    }
}

#[test]
fn a_body_that_is_no_request_says_what_it_is() {
    let message = |body: &[u8]| parse(body, "id", &rules()).expect_err("no request").fault.message;
    assert_eq!(message(b""), "The build request is empty.");
    assert!(message(b"\xff\xfe").starts_with("The build request is not JSON"));
    assert_eq!(message(b"[1]"), "The build request must be a JSON object; it is a list.");
}

#[test]
fn a_request_that_is_too_long_still_names_its_owner() {
    let body = json!({"userID": "u", "repo": "o/n", "padding": "x".repeat(1 << 20)});
    let rejected = read(&body).expect_err("too long");
    assert_eq!(rejected.fault.reason, Reason::InvalidRequest);
    assert_eq!(rejected.subject.user_id.as_deref(), Some("u"));
}

#[test]
fn envs_may_be_a_list_or_an_object_and_values_may_be_scalars() {
    for envs in
        [json!({"A": 1, "B": true}), json!([{"key": "A", "value": 1}, {"key": "B", "value": true}])]
    {
        let body = json!({"userID": "u", "repo": "o/n", "buildPlan": {"envs": envs}});
        let envs = read(&body).expect("a good request").plan.envs;
        assert_eq!(
            envs.into_iter().collect::<Vec<_>>(),
            [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "true".to_owned())]
        );
    }
}

#[test]
fn the_root_directory_is_written_in_one_way() {
    for (given, read_as) in [("/", ""), (".", ""), ("", ""), ("./a//b/", "a/b"), ("/a", "a")] {
        let body = json!({"userID": "u", "repo": "o/n", "buildPlan": {"rootDirectory": given}});
        assert_eq!(read(&body).expect("a good request").plan.root_directory, read_as);
    }
}

#[test]
fn the_build_id_is_the_uuid_else_the_message_id() {
    let build_id = |body: &str, id| build_id(body.as_bytes(), id);
    assert_eq!(build_id(r#"{"uuid":"a"}"#, Some("b")).as_deref(), Some("a"));
    assert_eq!(build_id(r#"{"uuid":""}"#, Some("b")).as_deref(), Some("b"));
    let long = "x".repeat(256);
    assert_eq!(build_id(&json!({"uuid": long}).to_string(), Some("b")).as_deref(), Some("b"));
    for odd in ["a b", " ", "a\nb", "ключ", "\u{202e}", &long[..255]] {
        assert_eq!(build_id("{}", Some(odd)).as_deref(), Some(odd));
        assert_eq!(build_id(&json!({"uuid": odd}).to_string(), None).as_deref(), Some(odd));
    }
    assert_eq!(build_id("nonsense", None), None);
}
