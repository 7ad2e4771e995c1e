//! What Dockerfiles may say: built by the worker as by the engine's own client, on whatever engine it is.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::Command;

use image_builder::engine::docker::Tenancy;
use image_builder_actors::model::fault::Kind;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::BuildOrder;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::world::{BASE, RealWorld};
use crate::engine::tenancy;
use crate::http_server::{Answer, HttpServer};
use crate::registry::unique;
use crate::source::git_server::GitRepo;

/// What an engine may make of a Dockerfile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    /// An image, on every engine.
    Image,
    /// An image where its front end knows the feature, and a fault of the Dockerfile where not.
    IfKnown,
    /// A fault: the worker has nothing to give to it.
    Fault,
}

struct Feature {
    name: &'static str,
    dockerfile: String,
    expected: Expected,
}

fn feature(name: &'static str, expected: Expected, dockerfile: impl AsRef<str>) -> Feature {
    Feature { name, dockerfile: dockerfile.as_ref().replace("BASE", BASE), expected }
}

/// Each ends in an image of few files, so that they are soon compared.
fn features(http: &HttpServer, checksum: &str, git: &GitRepo) -> Vec<Feature> {
    use Expected::{Fault, IfKnown, Image};
    let commit = git.git(&["rev-parse", "HEAD"]);
    vec![
        feature(
            "a configuration",
            Image,
            "FROM scratch\nCOPY a.txt /\nENV A=1 B=\"two words\"\nWORKDIR /w/x\nUSER 12:34\nEXPOSE 80 53/udp\n\
             VOLUME /v\nSTOPSIGNAL SIGINT\nENTRYPOINT [\"/e\"]\nCMD [\"c\", \"d\"]\nLABEL l=1\n\
             HEALTHCHECK --interval=5s CMD [\"/h\"]\nSHELL [\"/s\", \"-c\"]\nONBUILD ENV C=3\n",
        ),
        feature(
            "arguments before and in stages",
            Image,
            "ARG IMAGE=BASE\nFROM ${IMAGE} AS one\nARG GREETING=none\nARG TARGETARCH\n\
             RUN echo \"$GREETING ${TARGETARCH:+has an architecture}\" > /out\n\
             FROM scratch\nARG GREETING\nCOPY --from=one /out /\nENV SAID=${GREETING:-nothing}\n",
        ),
        feature(
            "owners, modes and links",
            Image,
            "FROM BASE AS one\nCOPY --chown=7:8 d /d\nRUN ln -s b /d/link && chmod 4711 /d/b && mkfifo /d/pipe\n\
             FROM scratch\nCOPY --from=one /d /d\nCOPY --chown=1:2 --chmod=640 a.txt /owned\n",
        ),
        feature(
            "patterns, and a directory that is made",
            Image,
            "FROM scratch\nCOPY d/* *.txt /made/here/\nADD packed.tar /unpacked/\n",
        ),
        feature("what is ignored", Image, "FROM scratch\nCOPY . /all/\n"),
        feature(
            "a cache mount, a tmpfs and a bind",
            Image,
            "FROM BASE AS one\nRUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t \
             --mount=type=bind,source=d,target=/b cp /b/b /out && touch /c/x /t/x\n\
             FROM scratch\nCOPY --from=one /out /\n",
        ),
        feature(
            "a secret as a file",
            Image,
            "FROM BASE AS one\nRUN --mount=type=secret,id=tok,mode=0444,uid=5 sha256sum < /run/secrets/tok > /out\n\
             FROM scratch\nCOPY --from=one /out /\n",
        ),
        feature(
            "a secret as a variable",
            IfKnown,
            "FROM BASE AS one\nRUN --mount=type=secret,id=tok,env=TOK echo \"$TOK\" | sha256sum > /out\n\
             FROM scratch\nCOPY --from=one /out /\n",
        ),
        feature(
            "heredocs",
            IfKnown,
            "FROM BASE AS one\nRUN <<EOF\nset -e\necho one > /out\necho two >> /out\nEOF\n\
             FROM scratch\nCOPY --from=one /out /\nCOPY <<text /written\nsome text\ntext\n",
        ),
        feature("--link", IfKnown, "FROM scratch\nCOPY --link a.txt d /d/\n"),
        feature("--parents", IfKnown, "FROM scratch\nCOPY --parents d/b /p/\n"),
        feature("--exclude", IfKnown, "FROM scratch\nCOPY --exclude=b d /d/\n"),
        feature(
            "ADD of an address",
            Image,
            format!("FROM scratch\nADD {} /\n", http.url("/file.txt")),
        ),
        feature(
            "ADD with its checksum",
            IfKnown,
            format!("FROM scratch\nADD --checksum=sha256:{checksum} {} /\n", http.url("/file.txt")),
        ),
        feature(
            "ADD with another's checksum",
            Fault,
            format!(
                "FROM scratch\nADD --checksum=sha256:{} {} /\n",
                "0".repeat(64),
                http.url("/file.txt")
            ),
        ),
        feature(
            "ADD of a repository",
            IfKnown,
            format!("FROM scratch\nADD {}#{commit} /repository/\n", git.url()),
        ),
        feature(
            "ssh",
            Fault,
            format!("FROM BASE\nRUN --mount=type=ssh,required=true : {}\n", unique()),
        ),
        feature(
            "a build context that nobody names",
            Fault,
            "FROM scratch\nCOPY --from=named.invalid/x /a /\n",
        ),
        feature(
            "the platform of the engine",
            Image,
            "FROM --platform=$BUILDPLATFORM BASE AS one\nRUN echo built > /out\nFROM scratch\nCOPY --from=one /out /\n",
        ),
        feature(
            "a comment that is escaped, and lines that go on",
            Image,
            "# escape=`\nFROM scratch\nENV A=1 `\n  # a comment\n  B=2\nCOPY a.txt `\n  /\n",
        ),
        feature(
            "an instruction of a later front end",
            IfKnown,
            "FROM scratch\nRUN --security=sandbox --network=none [\"/none\"]\n",
        ),
    ]
}

fn order(world: &RealWorld, dockerfile: &str) -> BuildOrder {
    let mut order = world.order(&[
        ("Dockerfile", dockerfile),
        (
            ".dockerignore",
            "# what is kept out\n*.md\n!kept.md\n**/secret\n.dockerignore\nDockerfile\n",
        ),
        ("a.txt", "a\n"),
        ("d/b", "b\n"),
        ("d/c/e", "e\n"),
        ("d/secret", "no\n"),
        ("lost.md", "no\n"),
        ("kept.md", "kept\n"),
    ]);
    let mut packed = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o600);
    packed.append_data(&mut header, "inside/file", &b"in\n"[..]).expect("a tar in memory");
    std::fs::write(order.plan.context.join("packed.tar"), packed.into_inner().expect("a tar"))
        .expect("a file");
    order.plan.build_args.insert("GREETING".to_owned(), "good day".to_owned());
    order.plan.secrets.insert("tok".to_owned(), Secret::new("a secret of ten words"));
    order
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_gives_the_image_that_the_engines_own_client_makes() {
    // Of addresses on the engine's own machine, a strict worker takes nothing: see `tenants`.
    if tenancy() == Tenancy::Strict {
        return;
    }
    let world = RealWorld::new().await;
    let content = "fetched\n";
    let http = HttpServer::answering(move |_| Answer::bytes(content)).await;
    let checksum: String =
        Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    let git = GitRepo::create("contract", "added");
    git.commit(&[("in/it", "it\n")]);

    for feature in features(&http, &checksum, &git) {
        let name = feature.name;
        let order = order(&world, &feature.dockerfile);
        let theirs = by_client(&order);
        let (ours, progress) = world.build(&order).await;
        let log = progress.tail().join("\n");
        match (&ours, &theirs) {
            (Ok(ours), Ok(theirs)) => {
                assert_eq!(look(&ours.id), look(theirs), "{name}");
            }
            (Err(fault), Err(_)) => {
                assert!(matches!(fault.kind(), Kind::User | Kind::Build), "{name}: {fault}");
            }
            (ours, theirs) => panic!("{name}: {ours:?}, and the client: {theirs:?}\n{log}"),
        }
        match feature.expected {
            Expected::Image => assert!(ours.is_ok(), "{name}: {ours:?}"),
            Expected::Fault => assert!(ours.is_err(), "{name}"),
            Expected::IfKnown => {}
        }
        if let Ok(image) = theirs {
            said(docker().args(["rmi", &image]));
        }
    }
}

/// The image that `docker build` makes, or what it said.
fn by_client(order: &BuildOrder) -> Result<String, String> {
    let secrets = TempDir::new().expect("a temporary directory");
    let mut command = docker();
    command.args(["build", "-q", "--progress", "plain"]);
    for (name, value) in &order.plan.build_args {
        command.args(["--build-arg", &format!("{name}={value}")]);
    }
    for (id, secret) in &order.plan.secrets {
        let path = secrets.path().join(id);
        std::fs::write(&path, secret.expose()).expect("a file");
        command.args(["--secret", &format!("id={id},src={}", path.display())]);
    }
    let output = command.arg(&order.plan.context).output().expect("docker is installed");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What an image is, but for times and for the labels that the worker adds.
fn look(image: &str) -> (BTreeMap<String, String>, Value) {
    let inspected = said(docker().args(["image", "inspect", image]));
    let inspected: Value = serde_json::from_slice(&inspected).expect("it is JSON");
    let mut config = inspected[0]["Config"].clone();
    for (field, value) in config.as_object_mut().expect("it is an object") {
        match field.as_str() {
            "Labels" => {
                value
                    .as_object_mut()
                    .into_iter()
                    .for_each(|labels| labels.retain(|name, _| name == "l"));
                if value.as_object().is_some_and(serde_json::Map::is_empty) {
                    *value = Value::Null;
                }
            }
            // The image's own id, on some engines.
            "Image" | "Hostname" => *value = Value::Null,
            _ => {}
        }
    }
    (files(image), config)
}

/// The files of an image by their paths, each with all that matters of it.
fn files(image: &str) -> BTreeMap<String, String> {
    let container = said(docker().args(["create", image, "nothing"]));
    let container = String::from_utf8_lossy(&container).trim().to_owned();
    let exported = said(docker().args(["export", &container]));
    said(docker().args(["rm", &container]));
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(&exported[..]).entries().expect("a tar") {
        let mut entry = entry.expect("a tar");
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        // Every container has these.
        let first = path.split('/').next().unwrap_or_default();
        if ["dev", "etc", "proc", "sys", ".dockerenv"].contains(&first) {
            continue;
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("a tar");
        let head = entry.header();
        let link = entry.link_name_bytes().map(|it| String::from_utf8_lossy(&it).into_owned());
        let seen = format!(
            "{:?} {:o} {}:{} {:?} {}",
            head.entry_type(),
            head.mode().expect("a mode"),
            head.uid().expect("a user"),
            head.gid().expect("a group"),
            link,
            String::from_utf8_lossy(&content),
        );
        files.insert(path, seen);
    }
    files
}

fn docker() -> Command {
    let mut command = Command::new("/usr/bin/docker");
    command.env("DOCKER_BUILDKIT", "1");
    command
}

/// What a command prints that has to work.
fn said(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("docker is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
