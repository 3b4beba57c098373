//! `qemu-tests [NAME… | --list | --smoke]`: runs scenarios and prints figures as JSON lines.

use anyhow::{Result, bail};
use lexopt::prelude::{Long, Short, Value, ValueExt as _};
use qemu_tests::{
    Env, Options, pace,
    scenario::{ALL, Outcome, Scenario},
    vm,
};
use std::{process::ExitCode, time::Instant};

const USAGE: &str = "\
usage: qemu-tests [NAME...] [--smoke] [--list] [options]

  NAME            run these (a prefix is enough); all when none is given
  --smoke         run the short set; what is skipped in it counts as failed
  --list          say what there is
  --quelead FILE  the node binary (default: cargo build --release -p agent)
  --quelea FILE   the operator's binary (default: cargo build --release -p tools)
  --hello FILE    the example workload (default: cargo build --release -p hello)
  --stand-in      the test helper is PID 1 and keeps quelead's agent running
  --profile NAME  cargo profile of what is built (default release)
  --cache DIR     where kernel packages are kept (default: beside cargo's output)
  --seed N        seed of the fabric's losses
  --json          figures alone on stdout; the rest on stderr
  --keep          keep the directory of tests that pass, too
";

struct Asked {
    names: Vec<String>,
    smoke: bool,
    list: bool,
    json: bool,
    options: Options,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("qemu-tests: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Option<Asked>> {
    let mut asked = Asked {
        names: Vec::new(),
        smoke: false,
        list: false,
        json: false,
        options: Options { seed: 1, ..Options::default() },
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Value(name) => asked.names.push(name.string()?),
            Long("smoke") => asked.smoke = true,
            Long("list") => asked.list = true,
            Long("json") => asked.json = true,
            Long("keep") => asked.options.keep = true,
            Long("quelead") => asked.options.quelead = Some(parser.value()?.into()),
            Long("quelea") => asked.options.quelea = Some(parser.value()?.into()),
            Long("hello") => asked.options.hello = Some(parser.value()?.into()),
            Long("stand-in") => asked.options.stand_in = true,
            Long("profile") => asked.options.profile = Some(parser.value()?.string()?),
            Long("cache") => asked.options.cache = Some(parser.value()?.into()),
            Long("seed") => asked.options.seed = parser.value()?.parse()?,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(asked))
}

fn chosen(asked: &Asked) -> Result<Vec<&'static Scenario>> {
    for name in &asked.names {
        if !ALL.iter().any(|s| s.name.starts_with(name.as_str())) {
            bail!("no scenario {name}; --list names them");
        }
    }
    let wanted = |s: &&Scenario| {
        let named = asked.names.iter().any(|name| s.name.starts_with(name.as_str()));
        named || (asked.names.is_empty() && (!asked.smoke || s.smoke))
    };
    Ok(ALL.iter().filter(wanted).collect())
}

fn run() -> Result<bool> {
    let Some(asked) = parse()? else {
        print!("{USAGE}");
        return Ok(true);
    };
    let chosen = chosen(&asked)?;
    if asked.list {
        for s in chosen {
            println!("{:<36} {}{}", s.name, s.about, if s.smoke { " [smoke]" } else { "" });
        }
        return Ok(true);
    }
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    if vm::qemu_version().is_none_or(|version| version < (7, 2)) {
        for s in &chosen {
            println!("SKIP {}: qemu-system-x86_64 7.2 or later is not installed", s.name);
        }
        println!("0 passed, 0 failed, {} skipped", chosen.len());
        return Ok(!asked.smoke);
    }
    pace::probe();
    let env = Env::prepare(&asked.options)?;
    let say = |line: &str| if asked.json { eprintln!("{line}") } else { println!("{line}") };
    let begun = Instant::now();
    let mut table = Vec::new();
    for s in chosen {
        let start = Instant::now();
        let outcome = (s.run)(&env, s.name);
        let took = start.elapsed().as_secs_f64();
        let word = match outcome {
            Ok(Outcome::Passed(figures)) => {
                say(&format!("ok   {} ({took:.1} s)", s.name));
                figures.iter().for_each(|figure| println!("{}", figure.line()));
                passed += 1;
                "passed"
            }
            Ok(Outcome::Skipped(why)) => {
                say(&format!("SKIP {}: {why}", s.name));
                skipped += 1;
                "skipped"
            }
            Err(why) => {
                say(&format!("FAIL {} ({took:.1} s): {why:#}", s.name));
                let (seed, pace, dir) = (env.seed, pace::stretch(), vm::test_path(s.name));
                say(&format!(
                    "     seed {seed}, pace {pace:.1}; serial logs and capture in {}",
                    dir.display()
                ));
                failed += 1;
                "FAILED"
            }
        };
        table.push(format!("  {:<36} {word:<8} {took:7.1} s", s.name));
    }
    if table.len() > 1 {
        say(&format!("\n{}", table.join("\n")));
    }
    let took = begun.elapsed().as_secs_f64();
    say(&format!(
        "{passed} passed, {failed} failed, {skipped} skipped in {took:.0} s (pace {:.1})",
        pace::stretch()
    ));
    // The short set is what CI trusts: a scenario that could not be tried has not passed.
    Ok(failed == 0 && !(asked.smoke && skipped > 0))
}
