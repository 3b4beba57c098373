//! `{{ pod.ip }}` in environment values.

/// Names that a value may use.
pub const NAMES: [&str; 10] = [
    "pod.name",
    "pod.ip",
    "pod.slot",
    "node.name",
    "node.row",
    "node.rack",
    "node.power",
    "app.name",
    "app.namespace",
    "app.generation",
];

/// Checks every `{{ … }}` of a value.
///
/// # Errors
/// What is wrong, for people.
pub fn check(value: &str) -> Result<(), String> {
    render(value, |name| NAMES.contains(&name).then(String::new)).map(drop)
}

/// Replaces every `{{ name }}` by what `lookup` says.
///
/// # Errors
/// An unclosed `{{` or a name that `lookup` does not know, for people.
pub fn render(value: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut done = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once("{{") {
        done.push_str(before);
        let (name, next) = after.split_once("}}").ok_or("`{{` without `}}`")?;
        let name = name.trim();
        let text = lookup(name).ok_or_else(|| {
            format!("`{{{{ {name} }}}}` is not known; there are {}", NAMES.join(", "))
        })?;
        done.push_str(&text);
        rest = next;
    }
    done.push_str(rest);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_and_refuses() {
        let lookup = |n: &str| (n == "pod.ip").then(|| "100.64.0.2".to_owned());
        assert_eq!(
            render("http://{{ pod.ip }}:80/{{pod.ip}}", lookup).unwrap(),
            "http://100.64.0.2:80/100.64.0.2"
        );
        assert_eq!(render("plain } { }}", lookup).unwrap(), "plain } { }}");
        assert!(render("{{ pod.ip", lookup).is_err());
        assert!(check("{{ secret.db.url }}").is_err());
        assert!(check("{{ node.rack }}").is_ok());
    }
}
