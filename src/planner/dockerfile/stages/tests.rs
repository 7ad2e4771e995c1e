use super::*;

fn refused(text: &str) -> Option<String> {
    check(text, &BTreeMap::new(), true).err()
}

/// Dockerfiles that end an engine, or that no engine builds since they have no stage.
const WITHOUT_STAGE: &[(&str, &str)] = &[
    ("ARG X=1\n", "no stage"),
    ("ARG X=1", "no stage"),
    ("arg X=1\nArG Y\n\n# FROM scratch\n", "line 4 is part of a comment"),
    ("\u{feff}ARG X=1\r\n", "no stage"),
    ("  \tARG X=1\n", "no stage"),
    ("ARG X=1 \\\nFROM scratch\n", "line 2 is part of a comment or continues"),
    ("ARG X=1 \\\n\n# comment\n  \\\nFROM scratch\n", "line 5"),
    ("ARG X=1 \\  \t\nFROM scratch\n", "no stage"),
    ("ARG X=1\rFROM scratch\rRUN true\r", "carriage return alone (CR)"),
    ("# comment\rFROM scratch\r", "carriage return alone (CR)"),
    ("# escape=`\nARG X=1 `\nFROM scratch\n", "no stage"),
    ("# syntax\nARG X=1\n", "no stage"),
    ("#comment\n# syntax=x/y\nARG X=1\n", "no stage"),
    (" # syntax=x/y\nARG X=1\n", "no stage"),
    ("\u{feff}# syntax=x/y\nARG X=1\n", "no stage"),
    ("# syntax=\nARG X=1\n", "no stage"),
    // Each of these has a stage by the reading of some engines only.
    ("ARG X=1 \\\r\r\nFROM scratch\n", "no stage"),
    ("#\u{a0}escape=`\nARG X=1 \\\nFROM scratch\n", "no stage"),
    ("# check=skip=all\n# escape=`\nARG X=1 \\\nFROM scratch\n", "no stage"),
    ("# only a comment\n", "no stage"),
    ("\n\n\n", "no stage"),
    ("RUN true\nFROM scratch\n", "`RUN` in line 1"),
    ("ARG X\n\nONBUILD RUN true\nFROM scratch\n", "`ONBUILD` in line 3"),
    ("FROMM scratch\n", "`FROMM` in line 1"),
    ("\\\n", "`` in line 1"),
];

#[test]
fn a_dockerfile_without_a_stage_is_refused_with_what_hides_it() {
    for (text, said) in WITHOUT_STAGE {
        let why = refused(text).unwrap_or_else(|| panic!("taken: {text:?}"));
        assert!(why.contains(said), "{text:?}: {why}");
    }
}

#[test]
fn odd_dockerfiles_that_engines_build_are_taken() {
    for text in [
        "FROM scratch",
        "from scratch\n",
        "\u{feff}FROM scratch\r\nRUN true\r\n",
        "\n \t\n# comment\n   # another\n\tFROM scratch\n",
        "ARG A=1 B=2\nARG C\nFROM scratch\n",
        "ARG A=\\\\\nFROM scratch\n",
        "ARG A=1 \\\n  # comment\n\n  B=2\nFROM scratch\n",
        "\\\nFROM scratch\n",
        "FR\\\nOM scratch\n",
        "FROM\\\n scratch\n",
        "# escape=`\nARG A=C:\\\nFROM scratch\n",
        "# escape=\\\n# comment\nFROM scratch\n",
        "FROM\u{b}scratch\n",
        "ARG A=caf\u{fffd}\nFROM scratch\n",
        "FROM scratch AS a\nFROM scratch AS a\nFROM a AS a\nCOPY --from=0 / /\n",
        "FROM scratch AS a\nFROM a\nCOPY --from=a --chown=1 / /\nRUN --mount=from=a,target=/x true\n",
        "FROM scratch AS a\nFROM scratch\nCOPY --from=alpine / /\nCOPY --from=a / /\n",
        // Files of a later stage: engines refuse that by themselves, and live on.
        "FROM scratch AS a\nCOPY --from=b / /\nFROM scratch AS b\nENV x=1\nFROM a\n",
        "FROM build-${TARGETARCH}\n",
        "FROM scratch AS build-amd64\nFROM build-$TARGETARCH AS x\nCOPY --from=build-amd64 / /\n",
        "FROM scratch\nCOPY <<EOF /x\nARG X\nRUN true\nEOF\n",
    ] {
        assert_eq!(refused(text), None, "{text:?}");
    }
}

#[test]
fn what_another_front_end_reads_is_not_looked_into() {
    for text in [
        "# syntax=x/y\nARG X=1\n",
        "#syntax = x/y:1\r\nanything\r\n",
        "# escape=`\n# Syntax=x/y\n{}\n",
        // Engines that do not know these say so.
        "// syntax=x/y\nbuild: it\n",
        "{\"syntax\": \"x/y\"}",
        "#!/usr/bin/env build\n# syntax=x/y\nbuild: it\n",
    ] {
        assert_eq!(check(text, &BTreeMap::new(), false), Ok(()), "{text:?}");
    }
    let named = [("BUILDKIT_SYNTAX".to_owned(), "x/y".to_owned())].into();
    assert_eq!(check("build: it\n", &named, false), Ok(()));
    // Older engines do not know this argument and would read it themselves.
    assert!(check("ARG X=1\n", &named, false).is_err());
}

#[test]
fn what_the_engine_s_own_front_end_reads_is_looked_into_whatever_is_named() {
    let text = "# syntax=docker/dockerfile:1\nARG X=1\n";
    assert!(refused(text).is_some_and(|why| why.contains("no stage")));
    assert_eq!(refused("# syntax=docker/dockerfile:1\nFROM scratch\n"), None);
}

#[test]
fn here_documents_hide_nothing() {
    let circle = |hidden: &str, end: &str| {
        format!(
            "FROM scratch AS a\nCOPY <<{hidden} /x\n{end}\nCOPY --from=b / /\nFROM a AS b\nENV x=1\n"
        )
    };
    for (hidden, end) in [("'E\\'", "E\\"), ("-\"E\\\\\"", "\t\tE\\"), ("E\\\\", "E\\")] {
        let text = circle(hidden, end);
        let why = refused(&text).unwrap_or_else(|| panic!("taken: {text}"));
        assert!(why.contains("circle"), "{why}");
    }
    let kept = "FROM scratch\nRUN [\"<<EOF\"]\nCOPY <<A <<-'B' /x/\n1\nA\n2\n\tB\nONBUILD RUN <<E\nx\nE\nRUN 3<<F\ny\nF\nENV x=1\n";
    let names: Vec<_> = read(kept, NEWEST).into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["from", "run", "copy", "onbuild", "run", "env"]);
}

#[test]
fn stages_that_need_each_other_in_a_circle_are_refused() {
    let circle = |take: &str, base: &str| {
        format!(
            "ARG B=a\nFROM scratch AS c\nFROM scratch AS a\n{take}\nFROM {base} AS b\nENV x=1\n"
        )
    };
    for (take, base) in [
        ("COPY --from=b /x /x", "a"),
        ("copy --chown=1 --FROM=B /x /x", "A"),
        ("COPY --from=2 /x /x", "a"),
        ("COPY --from=\"\\b\" /x /x", "a"),
        ("COPY --fr\\\nom=b /x /x", "--platform=linux/amd64 a"),
        ("RUN --mount=type=bind,target=/x,FROM=b true", "a"),
        ("RUN --mount=target=/x \\\n --mount=\"from=b\",target=/y true", "$B"),
        ("COPY --from=b /x /x", "${B}"),
        ("COPY --from=b /x /x", "\"${B:-x}\""),
        ("COPY --from=b /x /x", "${B:+a}"),
        ("COPY --from=b /x /x", "$TARGETARCH"),
        ("COPY --from=b /x /x", "${B#x}"),
    ] {
        let text = circle(take, base);
        let why = refused(&text).unwrap_or_else(|| panic!("taken: {text}"));
        assert!(why.contains("circle") && why.contains("`a`") && why.contains("`b`"), "{why}");
    }
    let given = [("B".to_owned(), "d".to_owned())].into();
    assert_eq!(check(&circle("COPY --from=b /x /x", "$B"), &given, true), Ok(()));
    assert_eq!(refused(&circle("COPY --from=bb /x /x", "a")), None);
}

#[test]
fn stages_that_need_each_other_in_too_many_ways_are_refused() {
    let chain = |stages: usize| {
        let stage = |n: usize| format!("FROM s{n} AS s{}\nCOPY --from=s{n} / /\n", n + 1);
        "FROM scratch AS s0\n".to_owned() + &(0..stages).map(stage).collect::<String>()
    };
    assert_eq!(refused(&chain(20)), None);
    let why = refused(&chain(40)).expect("an engine never comes to its end");
    assert!(why.contains("too many ways"), "{why}");
}

#[test]
fn neither_many_stages_nor_values_that_double_cost_the_worker_anything() {
    let stages: String = (0..50_000).map(|n| format!("FROM s{n} AS s{}\n", n + 1)).collect();
    let why = refused(&stages).expect("nobody has as many");
    assert!(why.contains("50000 stages"), "{why}");
    let double = |n: usize| format!("ARG A{}=$A{n}$A{n}\n", n + 1);
    let doubled = (0..100).map(double).collect::<String>();
    assert_eq!(refused(&format!("ARG A0=x\n{doubled}FROM $A100\n")), None);
}

#[test]
fn the_images_of_a_target_are_those_of_the_stages_that_it_needs() {
    let of = |text: &str, target: Option<&str>| {
        let given = BTreeMap::from([("V".to_owned(), "3".to_owned())]);
        images(text, &given, target)
    };
    let text = "# syntax=docker/dockerfile:1\nARG V=1\nARG W=2\n\
                FROM --platform=linux/amd64 golang:${V} AS Build\nRUN --mount=type=bind,from=tools:1,target=/t make\n\
                FROM node:$W AS web\n\
                FROM scratch AS out\nCOPY --from=build /a /b\nCOPY --from=0 /a /b\nCOPY --from=golang:3 /c /d\n\
                FROM x:$UNKNOWN AS last\nCOPY --from=out /a /b\nCOPY --from=reg.test:5000/y@sha256:00 /a /b\n";
    assert_eq!(of(text, Some("OUT")), ["golang:3", "tools:1"]);
    assert_eq!(of(text, Some("1")), ["node:2"]);
    // What only the engine knows may be any stage.
    let all = ["golang:3", "tools:1", "node:2", "x:$UNKNOWN", "reg.test:5000/y@sha256:00"];
    assert_eq!(of(text, None), all);
    assert_eq!(of(text, Some("unknown")), all);
    assert_eq!(of("ARG A=1\n", None), [""; 0]);
}

#[test]
fn declared_arguments_are_found_in_whatever_stage() {
    let text = "ARG A=1 B\nFROM x\narg C=\"a b\"\nONBUILD ARG D\n# ARG E\nRUN <<EOF\nARG F\nEOF\nRUN ARG G\n";
    let declared: Vec<_> = declared(text).into_iter().collect();
    for name in ["A", "B", "C", "D"] {
        assert!(declared.iter().any(|found| found == name), "{name}: {declared:?}");
    }
    for name in ["E", "F", "G"] {
        assert!(declared.iter().all(|found| found != name), "{name}: {declared:?}");
    }
}
