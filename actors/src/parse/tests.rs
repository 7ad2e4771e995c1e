use serde_json::json;

use super::*;
use crate::model::request::BuilderKind;

fn rules() -> Rules {
    Rules::new("https://github.com", Limits::default())
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
fn a_git_directory_is_kept_where_it_is_asked_for() {
    let of = |plan: Value| read(&json!({"userID": "u", "repo": "o/n", "buildPlan": plan}));
    let kept = |plan| of(plan).map(|request| request.plan.keep_git_dir).ok();
    assert_eq!(kept(json!({})), Some(false));
    assert_eq!(kept(json!({"keepGitDir": true})), Some(true));
    assert_eq!(kept(json!({"keepGitDir": null})), Some(false));
    assert_eq!(kept(json!({"keepGitDir": "yes"})), None);
}

#[test]
fn a_build_is_known_by_its_user_and_by_its_uuid_or_else_its_message_id() {
    for (body, id, known) in [
        (r#"{"uuid":"a","userID":"u"}"#, Some("b"), Some((Some("u"), "a"))),
        (r#"{"uuid":"","userID":"u"}"#, Some("b"), Some((Some("u"), "b"))),
        (r#"{"uuid":"a b","userID":"u"}"#, Some("b"), Some((Some("u"), "a b"))),
        (r#"{"uuid":"a","uuid":"c"}"#, Some("b"), Some((None, "b"))),
        (r#"{"uuid":"a","pullInfo":{"userID":"u"}}"#, None, Some((Some("u"), "a"))),
        ("nonsense", Some("b"), Some((None, "b"))),
        ("nonsense", None, None),
        (r#"{"userID":"u"}"#, None, None),
    ] {
        let known = known.map(|(user, id)| BuildIdentity::new(user, id));
        assert_eq!(identity(body.as_bytes(), id), known, "{body}");
    }
    let build_id = |body: &str, id| identity(body.as_bytes(), id).map(|build| build.build_id);
    let long = "x".repeat(256);
    assert_eq!(build_id(&json!({"uuid": long}).to_string(), Some("b")).as_deref(), Some("b"));
    for odd in [" ", "a\nb", "ключ", "\u{202e}", &long[..255]] {
        assert_eq!(build_id("{}", Some(odd)).as_deref(), Some(odd));
        assert_eq!(build_id(&json!({"uuid": odd}).to_string(), None).as_deref(), Some(odd));
    }
}

/// Whose a body is that is refused as invalid, and why.
fn refused(body: &str) -> (Option<String>, String) {
    let rejected = parse(body.as_bytes(), "id", &rules()).expect_err(body);
    assert_eq!(rejected.fault.reason, Reason::InvalidRequest, "{body}");
    assert_eq!(
        identity(body.as_bytes(), Some("id")).expect("an id").user_id,
        rejected.subject.user_id
    );
    (rejected.subject.user_id, rejected.fault.message)
}

#[test]
fn users_and_applications_are_who_they_are_byte_by_byte() {
    for user in ["victim", "Victim", "v\u{200b}", "\u{feff}victim", "a b", "victim\u{301}"] {
        let request = read(&json!({"userID": user, "repo": "o/n"})).expect("a good request");
        assert_eq!(request.user_id, user);
    }
    for user in [
        "victim\n",
        " victim",
        "victim ",
        "victim\u{a0}",
        "\u{2003}victim",
        "v\u{0}",
        "v\u{7f}",
        "v\u{85}",
    ] {
        let (owner, message) = refused(&json!({"userID": user, "repo": "o/n"}).to_string());
        assert_eq!(
            owner.as_deref(),
            Some(user),
            "told as whom the request names, and as nobody else"
        );
        assert!(message.contains("`userID`"), "{message}");
        let body = json!({"userID": "u", "repo": "o/n", "applicationID": user});
        assert!(fault(&body).message.contains("`applicationID`"));
    }
    let nobody =
        [json!(null), json!(""), json!(" \n"), json!(7), json!(["u"]), json!("x".repeat(257))];
    for user in nobody {
        let (owner, _) = refused(&json!({"userID": user, "repo": "o/n"}).to_string());
        assert_eq!(owner, None, "{user}");
    }
    for name in ["userId", "userid", "USERID", "user_id", "userID "] {
        assert_eq!(refused(&json!({name: "u", "repo": "o/n"}).to_string()).0, None, "{name}");
    }
}

#[test]
fn a_body_that_has_a_name_twice_is_refused() {
    for (body, owner) in [
        (r#"{"userID":"victim","userID":"u","repo":"o/n"}"#, None),
        (r#"{"userID":"u","\u0075serID":"victim","repo":"o/n"}"#, None),
        (r#"{"userID":"u","userID":"u","repo":"o/n"}"#, Some("u")),
        (r#"{"userID":"u","repo":"o/n","repo":"o/m"}"#, Some("u")),
        (r#"{"userID":"u","repo":"o/n","force":true,"force":true}"#, Some("u")),
        (r#"{"userID":"u","repo":"o/n","buildPlan":{"buildArgs":{"A":"1","A":"2"}}}"#, Some("u")),
        (r#"{"userID":"u","repo":"o/n","buildPlan":{},"buildPlan":{}}"#, Some("u")),
        (r#"{"userID":"u","repo":"o/n","not known":[{"a":1,"a":2}]}"#, Some("u")),
        (r#"{"pullInfo":{"userID":"u","repo":"o/n"},"pullInfo":{"userID":"victim"}}"#, None),
    ] {
        let (told, message) = refused(body);
        assert_eq!(told.as_deref(), owner, "{body}");
        assert!(message.contains("more than once"), "{message}");
    }
}

#[test]
fn both_shapes_may_be_there_if_they_say_the_same() {
    let both = |top: Value| {
        let mut body =
            json!({"pullInfo": {"userID": "u", "token": "t", "repo": "o/n", "branch": "dev"}});
        body.as_object_mut()
            .expect("an object")
            .extend(top.as_object().expect("an object").clone());
        body
    };
    for same in [
        json!({}),
        json!({"userID": "u"}),
        json!({"userID": "", "token": null, "commit": " "}),
        json!({"userID": "u", "token": "t", "repo": "o/n", "type": "branch", "branch": "dev"}),
    ] {
        let request =
            read(&both(same.clone())).unwrap_or_else(|rejected| panic!("{same} {rejected:?}"));
        assert_eq!(request.target, Target::Branch("dev".to_owned()));
    }
    for (other, owner) in [
        (json!({"userID": "victim"}), None),
        (json!({"userID": 7}), None),
        (json!({"token": "other"}), Some("u")),
        (json!({"repo": "o/m"}), Some("u")),
        (json!({"repo": "O/n"}), Some("u")),
        (json!({"branch": "main"}), Some("u")),
        (json!({"commit": "abc1234"}), Some("u")),
        (json!({"tag": "v1"}), Some("u")),
        (json!({"type": "release", "release": "latest"}), Some("u")),
        (json!({"type": "repo"}), Some("u")),
        (json!({"connector": "github"}), Some("u")),
    ] {
        let (told, message) = refused(&both(other.clone()).to_string());
        assert_eq!(told.as_deref(), owner, "{other}");
        assert!(message.contains("do not say the same"), "{other}: {message}");
    }
}

#[test]
fn a_type_beside_the_older_shape_says_what_that_asks_for() {
    for (kind, pins, is_so) in [
        ("repo", json!({}), true),
        ("repo", json!({"commit": "latest"}), true),
        ("branch", json!({"branch": "dev", "commit": "latest"}), true),
        ("commit", json!({"branch": "dev", "commit": "abc1234"}), true),
        ("repo", json!({"branch": "dev"}), false),
        ("branch", json!({"branch": "dev", "commit": "abc1234"}), false),
        ("commit", json!({"branch": "dev", "commit": "latest"}), false),
        ("branch", json!({}), false),
        ("tag", json!({}), false),
    ] {
        let mut body = json!({"type": kind, "pullInfo": {"userID": "u", "repo": "o/n"}});
        let nested = body["pullInfo"].as_object_mut().expect("an object");
        nested.extend(pins.as_object().expect("an object").clone());
        assert_eq!(read(&body).is_ok(), is_so, "{body}");
    }
}

#[test]
fn a_variable_that_is_listed_twice_has_one_value() {
    let body = |second: &str| {
        let envs = json!([{"key": "A", "value": "1"}, {"key": "A", "value": second}]);
        json!({"userID": "u", "repo": "o/n", "buildPlan": {"envs": envs}})
    };
    assert_eq!(read(&body("1")).expect("a good request").plan.envs["A"], "1");
    assert!(fault(&body("2")).message.contains("has two values for `A`"));
}

#[test]
fn a_release_s_name_leads_nowhere_else() {
    let body =
        |name: &str| json!({"userID": "u", "repo": "o/n", "type": "release", "release": name});
    for name in ["../../../user", "..", ".", "a/../b", "..\\..\\user", "a/."] {
        assert!(fault(&body(name)).message.contains("`release`"), "{name}");
    }
    for name in ["v1.0", "Release 1.0 (stable)", "a..b", "a/b", "...", "%2e%2e"] {
        assert_eq!(read(&body(name)).expect(name).target, Target::Release(name.to_owned()));
    }
}

#[test]
fn a_credential_in_a_wrong_place_is_not_repeated() {
    let token = "5f4dcc3b5aa765d61d8327de";
    let known = "ghp_0123456789abcdefghij";
    let bodies = [
        json!({"repo": format!("https://github.com/o/n?access_token={token}")}),
        json!({"repo": format!("o/n#{token}")}),
        json!({"repo": format!("https://elsewhere.example/o/n?t={token}")}),
        json!({"repo": token}),
        json!({"repo": "o/n", "connector": token}),
        json!({"repo": "o/n", "type": known}),
        json!({"repo": "o/n", "type": "branch", "branch": format!("{known} x")}),
        json!({"repo": "o/n", "type": "branch", "branch": token, "token": token}),
        json!({"repo": "o/n", "type": "tag", "tag": format!("x-{token}"), "token": format!(" {token}\n")}),
        json!({"repo": "o/n", "type": "commit", "commit": known}),
        json!({"repo": "o/n", "applicationID": token, "token": token}),
        json!({"repo": "o/n", "buildPlan": {"builder": token}}),
        json!({"repo": "o/n", "buildPlan": {"buildArgs": {(format!("A={token}")): "x"}}}),
        json!({"repo": "o/n", "buildPlan": {"aptPkgs": [format!("--token {token}")]}}),
    ];
    for mut body in bodies {
        body["userID"] = json!("u");
        let rejected = format!("{:?}", read(&body).expect_err("a credential in a wrong place"));
        assert!(!rejected.contains(token) && !rejected.contains(known), "{body}: {rejected}");
    }
    let short =
        json!({"userID": "u", "repo": "o/n", "type": "branch", "branch": "main", "token": "main"});
    assert!(read(&short).is_ok(), "a short one stands there by chance");
}

#[test]
fn credentials_for_base_images_are_read_by_their_registry_and_never_repeated() {
    let auth = json!({
        "Registry.Example:5000": {"username": "joe", "password": "one-password"},
        "https://index.docker.io/v1/": {"username": "joe", "password": "{\n\"a\": \"key\"}"},
    });
    let at_top = json!({"userID": "u", "repo": "o/n", "registryAuth": auth});
    let in_plan = json!({"userID": "u", "repo": "o/n", "buildPlan": {"registryAuth": auth}});
    for body in [at_top, in_plan] {
        let request = read(&body).expect("a good request");
        let hosts: Vec<_> = request.plan.registry_auth.keys().map(String::as_str).collect();
        assert_eq!(hosts, ["docker.io", "registry.example:5000"]);
        let login = &request.plan.registry_auth["registry.example:5000"];
        assert_eq!((&*login.username, login.password.expose()), ("joe", "one-password"));
        assert_eq!(request.redactor().redact("is one-password"), "is [secret]");
        assert!(!format!("{request:?}{}", request.meaning()).contains("one-password"));
    }
}

#[test]
fn credentials_for_base_images_that_are_none_are_refused() {
    let login = json!({"username": "joe", "password": "one-password"});
    let many: Map<String, Value> =
        (0..17).map(|n| (format!("r{n}.example"), login.clone())).collect();
    for (auth, named) in [
        (json!("one-password"), "must be an object"),
        (json!({"registry.example": "one-password"}), "needs a `username`"),
        (json!({"registry.example": {"username": "joe"}}), "needs a `password`"),
        (json!({"a b": login}), "no registry's host"),
        (json!({"docker.io": login, "index.docker.io": login}), "two entries"),
        (Value::Object(many), "more than 16"),
    ] {
        let fault = fault(&json!({"userID": "u", "repo": "o/n", "registryAuth": auth}));
        assert_eq!(fault.reason, Reason::InvalidRequest);
        assert!(fault.message.contains(named), "{}", fault.message);
        assert!(!fault.message.contains("one-password"), "{}", fault.message);
    }
    let twice = json!({
        "userID": "u", "repo": "o/n", "registryAuth": {"a.example": login},
        "buildPlan": {"registryAuth": {"b.example": login}},
    });
    assert!(fault(&twice).message.contains("give it once"));
}

#[test]
fn platforms_are_named_in_any_order_and_each_once() {
    let of = |platforms: Value| json!({"userID": "u", "repo": "o/n", "buildPlan": {"platforms": platforms}});
    let request = read(&of(json!(["linux/arm64", "linux/x86_64", "linux/amd64"]))).expect("good");
    let names: Vec<_> = request.plan.platforms.iter().map(|one| one.as_str()).collect();
    assert_eq!(names, ["linux/amd64", "linux/arm64"]);
    for bad in ["windows/amd64", "linux/pdp11", ""] {
        assert_eq!(fault(&of(json!([bad]))).reason, Reason::Unsupported, "{bad}");
    }
    let all = ["amd64", "arm64", "386", "s390x", "riscv64"].map(|one| format!("linux/{one}"));
    assert_eq!(fault(&of(json!(all))).reason, Reason::InvalidRequest);
    assert_eq!(fault(&of(json!("linux/amd64"))).reason, Reason::InvalidRequest);
}

#[test]
fn a_message_names_some_of_many_faults_and_counts_the_rest() {
    let arguments: String = (0..30_000).map(|n| format!("\"{n} \":\"\",")).collect();
    let body = format!(
        r#"{{"userID":"u","repo":"o/n","buildPlan":{{"buildArgs":{{{arguments}"a":"b"}}}}}}"#
    );
    let message = parse(body.as_bytes(), "b", &rules()).expect_err("it is bad").fault.message;
    assert!(message.len() < 4_000, "{} bytes", message.len());
    assert!(message.ends_with("29990 more rules are broken."), "{message}");
}

/// What is read where there are all forges.
fn at(connector: &str, repo: &str) -> Result<BuildRequest, Box<Rejected>> {
    let rules = rules()
        .with(ForgeName::Gitlab, "https://gitlab.example/")
        .with(ForgeName::Git, "https://git.example")
        .with(ForgeName::Git, "http://10.0.0.7:3000");
    let body = json!({"userID": "u", "connector": connector, "repo": repo});
    parse(body.to_string().as_bytes(), "id", &rules)
}

#[test]
fn each_forge_has_its_own_repositories() {
    for (connector, repo, owner, name, application) in [
        ("gitlab", "group/name", "group", "name", "name"),
        ("gitlab", "https://GitLab.example/a/b/c/name.git", "a/b/c", "name", "name"),
        ("git", "https://git.example/name", "git.example", "name", "name"),
        ("git", "https://Git.example/~joe/x/name.git", "git.example/~joe/x", "name.git", "name"),
        ("git", "http://10.0.0.7:3000/a/b", "10.0.0.7:3000/a", "b", "b"),
    ] {
        let request = at(connector, repo).expect(repo);
        assert_eq!((&*request.repo.owner, &*request.repo.name), (owner, name), "{repo}");
        assert_eq!(request.application_id, application, "{repo}");
        assert_eq!(request.forge.as_str(), connector);
    }
    for (connector, repo, reason) in [
        ("gitea", "o/n", Reason::Unsupported),
        ("svn", "o/n", Reason::Unsupported),
        ("gitlab", "name", Reason::InvalidRequest),
        ("gitlab", "a//name", Reason::InvalidRequest),
        ("gitlab", "a/../name", Reason::InvalidRequest),
        ("gitlab", "https://github.com/o/n", Reason::ForbiddenSource),
        ("github", "a/b/name", Reason::InvalidRequest),
        ("git", "o/n", Reason::ForbiddenSource),
        ("git", "http://git.example/o/n", Reason::ForbiddenSource),
        ("git", "https://git.example.evil.example/o/n", Reason::ForbiddenSource),
        ("git", "https://git.example:444/o/n", Reason::ForbiddenSource),
        ("git", "https://git.example/", Reason::InvalidRequest),
        ("git", "https://git.example/a/../b", Reason::InvalidRequest),
        ("git", "https://git.example/a/.git", Reason::InvalidRequest),
    ] {
        let fault = at(connector, repo).expect_err(repo).fault;
        assert_eq!(fault.reason, reason, "{connector} {repo}: {}", fault.message);
    }
}

#[test]
fn a_reference_to_a_credential_stands_in_the_place_of_a_token() {
    let body = json!({"userID": "u", "repo": "o/n", "tokenRef": "team-7"});
    let request = read(&body).expect("a good request");
    assert_eq!((request.token_ref.as_deref(), request.token.is_none()), (Some("team-7"), true));
    let older = json!({"pullInfo": {"userID": "u", "repo": "o/n"}, "tokenRef": "team-7"});
    assert_eq!(read(&older).expect("good").token_ref.as_deref(), Some("team-7"));
    let both = json!({"userID": "u", "repo": "o/n", "tokenRef": "team-7", "token": "t"});
    assert!(fault(&both).message.contains("stands beside `token`"));
    let long = json!({"userID": "u", "repo": "o/n", "tokenRef": "x".repeat(1025)});
    assert!(fault(&long).message.contains("1024"));
}
