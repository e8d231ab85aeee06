//! [`template`]: the text of `settings.toml`, which is the documentation of every key.

use std::fmt::Write;

use super::Settings;

const HEADER: &str = "\
# Every setting of the chat server with its default. A line left out keeps its default.
# 채팅 서버의 모든 설정과 기본값. 생략한 줄은 기본값을 쓴다.
#
# Later layers win: built-in defaults < this file < environment < flags.
# 뒤의 것이 우선한다: 내장 기본값 < 이 파일 < 환경 변수 < 명령줄 플래그.
#     log.backend:  CHAT__LOG__BACKEND=mongodb  or  --set log.backend=mongodb
#     lists:        CHAT__CORS__ORIGINS=https://a.example,https://b.example
#
# An unknown key or a value that is not allowed stops the start, and is named with what is allowed.
# 모르는 키나 허용되지 않는 값이 있으면 시작하지 않고, 그 이름과 허용 범위를 알려 준다.
#
# Made by: chatting-server settings > settings.toml
";

/// The whole of `settings.toml`: each section and key with its documentation, default and what is allowed.
pub fn template() -> String {
    let mut text = HEADER.to_owned();
    for (name, section) in Settings::default().sections() {
        let [english, korean] = section.about();
        // Writing into a String cannot fail.
        let _ = write!(text, "\n# {english}\n# {korean}\n[{name}]\n");
        for key in section.keys() {
            let (default, allowed) = (&key.default, &key.allowed);
            let _ = write!(text, "# {}\n# {}\n", key.english, key.korean);
            let _ = write!(
                text,
                "# Default: {default}. Allowed: {allowed}.\n{} = {default}\n\n",
                key.name
            );
        }
        // One blank line between sections, none at the end.
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Load, Settings};
    use super::*;

    #[test]
    fn settings_toml_is_the_documentation() {
        assert!(
            include_str!("../../settings.toml") == template(),
            "settings.toml is not what the sections say; make it anew: chatting-server settings > settings.toml"
        );
    }

    #[test]
    fn what_it_says_are_the_defaults() {
        let path = std::env::temp_dir().join(format!("settings-template-{}.toml", std::process::id()));
        std::fs::write(&path, template()).unwrap();
        let loaded = Settings::load(Load {
            file: Some(&path),
            env: [],
            flags: &[],
        });
        std::fs::remove_file(&path).unwrap();
        let loaded = loaded.unwrap();
        assert_eq!(loaded.settings, Settings::default());
        assert!(loaded.origins.values().all(|layer| layer.to_string() == "file"));
    }

    #[test]
    fn every_line_is_short_and_every_key_is_documented_in_both_languages() {
        for line in template().lines() {
            assert!(line.chars().count() < 110, "{line}");
        }
        for (name, section) in Settings::default().sections() {
            let [english, korean] = section.about();
            let documented = section
                .keys()
                .into_iter()
                .map(|key| (key.name, key.english, key.korean));
            for (key, english, korean) in documented.chain([("", english, korean)]) {
                assert!(english.is_ascii() && english.ends_with('.'), "{name}.{key}: {english}");
                assert!(
                    korean.chars().any(|c| ('가'..='힣').contains(&c)),
                    "{name}.{key}: {korean}"
                );
            }
        }
    }
}
