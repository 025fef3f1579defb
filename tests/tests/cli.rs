//! The command line from outside: help for each verb, and the shipped configs.

use std::fs;

use parl_tests::{Folder, root};

#[test]
fn help_goes_to_standard_output_and_names_every_verb() {
    let folder = Folder::new().unwrap();
    let help = folder.trainer(&["--help"]).unwrap();
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    for verb in ["run", "runs", "show", "export", "eval", "report", "watch", "track", "config"] {
        assert!(help.out.contains(&format!("\n  {verb} ")), "{}", help.out);
        let own = folder.trainer(&[verb, "--help"]).unwrap();
        assert!(own.code == 0 && own.out.contains(&format!("trainer {verb}")), "{own:?}");
    }
}

#[test]
fn every_shipped_config_is_valid_and_names_the_schema() {
    let folder = Folder::new().unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            let name = path.display().to_string();
            let outcome = folder.trainer(&["config", "validate", "--config", &name]).unwrap();
            assert_eq!(outcome.code, 0, "{name}: {}", outcome.err);
            let text = fs::read_to_string(&path).unwrap();
            assert!(
                text.starts_with("# yaml-language-server: $schema=schema.json\n"),
                "{name}: an editor cannot check it"
            );
            seen += 1;
        }
    }
    assert!(seen > 0);
}
