"""`modeld completion`: what could come next on a shell's line? A script for bash, zsh or fish, made of the parser.

Commands, flags and choices stand in the script, so that a key press starts no Python. Ids of models and ops are asked of the
daemon that the line is for (its --server and --key-file), through the commands that list them; without an answer within two
seconds there are none, and nothing is said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from modeld import exits, outputs
from modeld.arguments import parser
from modeld.cli.commandtree import Flag, Node, Place, Takes, Value, tree

LISTED_BY = {Takes.MODEL: ("models", "id"), Takes.OP: ("ops", "op_id")}  # the command, and the key of its JSON
PASSED_ON = ("--server", "--key-file")  # say which daemon
ASK_S = 2


def run(args: argparse.Namespace) -> int:
    return outputs.write(sys.stdout, GENERATORS[args.shell](tree(parser()))) or exits.OK


def _asks(program: Node, takes: Takes) -> bool:
    """Whether there are ids to be had: an older or smaller modeld may lack the command."""
    return takes in LISTED_BY and LISTED_BY[takes][0] in (node.name for node in program.nodes)


def _all_flags(node: Node) -> Iterator[tuple[str, Flag]]:
    for flag in node.flags:
        for name in flag.names:
            yield name, flag


def _with_values(program: Node) -> Iterator[tuple[Node, str, Value]]:
    for node in program.walk():
        for name, flag in _all_flags(node):
            if flag.value is not None:
                yield node, name, flag.value


def _positions(node: Node) -> Iterator[tuple[Place, int, int | None]]:
    """With the numbers of the first and the last argument that may be this one."""
    first = 0
    for place in node.places:
        last = None if place.most is None else first + place.most - 1
        yield place, first, last
        first += place.most or place.least or 1


# -- bash -----------------------------------------------------------------------------------------------------------------

BASH = r"""# bash completion of modeld, printed by `modeld completion bash`.

# What a flag takes: sets kind and values; neither where it takes nothing.
_modeld_flag() {
    case "$1 $2" in
%(flag_cases)s
    esac
}

# What argument number $2 of a command is.
_modeld_place() {
    case $1 in
%(place_cases)s
    esac
}

# The flags of a command, and the commands below it.
_modeld_node() {
    flags= commands=
    case $1 in
%(node_cases)s
    esac
}

_modeld_ids() { # command key
    local program=${words[0]/#\~/$HOME} asked=() i
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        case ${words[i]} in
        %(passed_on)s) asked+=("${words[i]}" "${words[i + 1]}") ;;
        %(passed_on_equal)s) asked+=("${words[i]}") ;;
        esac
    done
    timeout %(ask_s)d "$program" "$1" --json "${asked[@]}" 2> /dev/null < /dev/null |
        grep -o "\"$2\": *\"[A-Za-z0-9._:-]*\"" | cut -d '"' -f 4
}

_modeld() {
    local IFS=$' \t\n' words=() rest=${COMP_LINE:0:COMP_POINT} word i
    # Readline breaks words at : and =, which ids and flags have: what no blank parts is put together again.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i == 0)) || [[ $rest == [[:space:]]* ]]; then
            rest=${rest#"${rest%%%%[![:space:]]*}"}
            words+=("")
        fi
        ((i < COMP_CWORD)) || word=$rest
        words[${#words[@]} - 1]+=$word
        rest=${rest#"$word"}
    done

    local cur=${words[${#words[@]} - 1]} node=%(program)s flag= n=0 only_places= kind= values= flags= commands=
    _modeld_node "$node"
    for word in "${words[@]:1:${#words[@]}-2}"; do
        if [[ $flag ]]; then
            flag=
        elif [[ ! $only_places && $word == -- ]]; then
            only_places=1
        elif [[ ! $only_places && $word == -* ]]; then
            kind=
            _modeld_flag "$node" "$word"
            [[ ! $kind ]] || flag=$word
        elif [[ $commands ]]; then
            node="$node $word"
            _modeld_node "$node"
        else
            ((n += 1))
        fi
    done

    kind= values=
    local prefix=
    if [[ $flag ]]; then
        _modeld_flag "$node" "$flag"
    elif [[ ! $only_places && $cur == -*=* ]]; then
        _modeld_flag "$node" "${cur%%%%=*}"
        prefix=${cur%%%%=*}=
        cur=${cur#*=}
    elif [[ ! $only_places && $cur == -* ]]; then
        kind=words values=$flags
    elif [[ $commands ]]; then
        kind=words values=$commands
    else
        _modeld_place "$node" "$n"
    fi

    COMPREPLY=()
    case $kind in
    file | folder)
        compopt -o filenames 2> /dev/null
        [[ $kind == file ]] && i=-f || i=-d
        mapfile -t COMPREPLY < <(compgen "$i" -- "$cur")
        ;;
    words) mapfile -t COMPREPLY < <(compgen -W "$values" -- "$cur") ;;
    ids) mapfile -t COMPREPLY < <(compgen -W "$(_modeld_ids $values)" -- "$cur") ;;
    esac
    # Only what comes after the last : or = is replaced.
    if [[ $COMP_WORDBREAKS == *:* && $cur == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${cur%%"${cur##*:}"}"}")
    elif [[ $COMP_WORDBREAKS != *=* && $prefix ]]; then
        COMPREPLY=("${COMPREPLY[@]/#/"$prefix"}")
    fi
}

complete -F _modeld %(program)s
"""


def bash(program: Node) -> str:
    places = []
    for node in program.walk():
        tests = [_bash_place(program, place.value, first, last) for place, first, last in _positions(node)]
        if any(tests):
            places += [f"    {_quoted(node.path)})", *(test for test in tests if test), "        ;;"]
    flags = [
        f"    {_quoted(f'{node.path} {name}')}) {_bash_kind(program, value)} ;;" for node, name, value in _with_values(program)
    ]
    nodes = [
        f"    {_quoted(node.path)})\n"
        f"        flags={_quoted(' '.join(name for name, _ in _all_flags(node)))}\n"
        f"        commands={_quoted(' '.join(inner.name for inner in node.nodes))}\n"
        f"        ;;"
        for node in program.walk()
    ]
    return BASH % {
        "program": program.name,
        "flag_cases": "\n".join(flags) or "    *) ;;",
        "place_cases": "\n".join(places) or "    *) ;;",
        "node_cases": "\n".join(nodes),
        "passed_on": " | ".join(PASSED_ON),
        "passed_on_equal": " | ".join(f"{name}=*" for name in PASSED_ON),
        "ask_s": ASK_S,
    }


def _bash_kind(program: Node, value: Value) -> str:
    match value.takes:
        case Takes.CHOICE:
            return f"kind=words values={_quoted(' '.join(value.choices))}"
        case Takes.FILE | Takes.FOLDER:
            return f"kind={value.takes.value}"
        case Takes.MODEL | Takes.OP if _asks(program, value.takes):
            return f"kind=ids values={_quoted(' '.join(LISTED_BY[value.takes]))}"
        case _:
            return "kind=text"


def _bash_place(program: Node, value: Value, first: int, last: int | None) -> str:
    kind = _bash_kind(program, value)
    if kind == "kind=text":
        return ""
    within = f"$2 >= {first}" if last is None else f"$2 >= {first} && $2 <= {last}"
    return f"        if (({within})); then {kind}; fi"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# -- zsh ------------------------------------------------------------------------------------------------------------------

ZSH = r"""#compdef %(program)s
# zsh completion of modeld, printed by `modeld completion zsh`.

_modeld_ids() { # command key
    local -a asked ids
    local i
    for ((i = 2; i < ${#typed}; i++)); do
        case ${typed[i]} in
        (%(passed_on)s) asked+=("${(@)typed[i,i+1]}") ;;
        (%(passed_on_equal)s) asked+=("${typed[i]}") ;;
        esac
    done
    ids=(${(f)"$(timeout %(ask_s)d ${~typed[1]} $1 --json "${(@Q)asked}" 2> /dev/null < /dev/null |
        grep -o "\"$2\": *\"[A-Za-z0-9._:-]*\"" | cut -d '"' -f 4)"})
    compadd -a ids
}

%(functions)s

_modeld() {
    local -a typed=("${words[@]}")  # before _arguments cuts off what is done with
    _modeld_node_%(program)s
}

if [[ $funcstack[1] == _modeld ]]; then
    _modeld "$@"
else
    compdef _modeld %(program)s
fi
"""


def zsh(program: Node) -> str:
    return ZSH % {
        "program": program.name,
        "functions": "\n\n".join(_zsh_function(program, node) for node in program.walk()),
        "passed_on": "|".join(PASSED_ON),
        "passed_on_equal": "|".join(f"{name}=*" for name in PASSED_ON),
        "ask_s": ASK_S,
    }


def _zsh_function(program: Node, node: Node) -> str:
    specs = [spec for flag in node.flags for spec in _zsh_flag(program, node, flag)]
    name = f"_modeld_node_{'_'.join(node.words)}"
    if not node.nodes:
        specs += _zsh_places(program, node)
        body = " \\\n        ".join(["_arguments -s", *(_quoted(spec) for spec in specs)])
        return f"{name}() {{\n    {body}\n}}"
    specs += [f"1: :{name}_commands", "*:: :->below"]
    body = " \\\n        ".join(["_arguments -C -s", *(_quoted(spec) for spec in specs)])
    commands = "\n".join(f"        {_quoted(f'{inner.name}:{inner.help}')}" for inner in node.nodes)
    cases = "\n".join(f"    ({inner.name}) {name}_{inner.name} ;;" for inner in node.nodes)
    return (
        f"{name}_commands() {{\n    local -a commands=(\n{commands}\n    )\n    _describe command commands\n}}\n\n"
        f"{name}() {{\n    local curcontext=$curcontext state line\n    typeset -A opt_args\n    {body} && return\n"
        f"    [[ $state == below ]] && case $line[1] in\n{cases}\n    esac\n}}"
    )


def _zsh_flag(program: Node, node: Node, flag: Flag) -> Iterator[str]:
    """As _arguments takes it, for each of its names: what it excludes, the name, its help, its value."""
    if "--help" in flag.names or "--version" in flag.names:
        others = "- *"
    else:
        rivals = {name for group in node.exclusive if flag in group for rival in group for name in rival.names}
        others = " ".join(sorted(rivals | (set() if flag.repeats else set(flag.names))))
    before = f"({others})" if others else ""
    text = "".join(f"\\{letter}" if letter in "[]\\:" else letter for letter in flag.help)
    value = ""
    if flag.value is not None:
        value = f"{'::' if flag.optional else ':'}{_zsh_name(flag.value)}:{_zsh_action(program, flag.value)}"
    star = "*" if flag.repeats else ""
    for name in flag.names:
        equal = "=" if flag.value is not None and name.startswith("--") else ""
        yield f"{before}{star}{name}{equal}[{text}]{value}"


def _zsh_places(program: Node, node: Node) -> Iterator[str]:
    for place, first, last in _positions(node):
        action = f"{_zsh_name(place.value)}:{_zsh_action(program, place.value)}"
        if last is None:
            yield f"*:{action}"
        else:
            for number in range(first, last + 1):
                yield f"{number + 1}{'::' if number - first >= place.least else ':'}{action}"


def _zsh_name(value: Value) -> str:
    return value.name.replace(":", "\\:")


def _zsh_action(program: Node, value: Value) -> str:
    match value.takes:
        case Takes.CHOICE:
            return f"({' '.join(value.choices)})"
        case Takes.FILE:
            return "_files"
        case Takes.FOLDER:
            return "_files -/"
        case Takes.MODEL | Takes.OP if _asks(program, value.takes):
            return f"{{_modeld_ids {' '.join(LISTED_BY[value.takes])}}}"
        case _:
            return " "


# -- fish -----------------------------------------------------------------------------------------------------------------

FISH = r"""# fish completion of modeld, printed by `modeld completion fish`.

# The command on the line, and the number of its arguments so far.
function __modeld_where
    set -l node %(program)s
    set -l n 0
    set -l is_value 0
    for word in (commandline -opc)[2..]
        if test $is_value = 1
            set is_value 0
            continue
        end
        switch "$node $word"
            case %(flags_with_values)s
                set is_value 1
            case %(paths)s
                set node "$node $word"
            case '* -*'
            case '*'
                set n (math $n + 1)
        end
    end
    echo $node
    echo $n
end

function __modeld_at # node [first [last]]
    set -l where (__modeld_where)
    test "$where[1]" = $argv[1]; or return 1
    set -q argv[2]; and begin
        test $where[2] -ge $argv[2]; or return 1
    end
    set -q argv[3]; and begin
        test $where[2] -le $argv[3]; or return 1
    end
    return 0
end

function __modeld_ids # command key
    set -l typed (commandline -opc)
    set -l asked
    for i in (seq 2 (count $typed))
        switch $typed[$i]
            case %(passed_on)s
                set -a asked $typed[$i] $typed[(math $i + 1)]
            case %(passed_on_equal)s
                set -a asked $typed[$i]
        end
    end
    timeout %(ask_s)d (string replace -r '^~' $HOME -- $typed[1]) $argv[1] --json $asked 2>/dev/null </dev/null |
        string match -ra "\"$argv[2]\": *\"[A-Za-z0-9._:-]*\"" | string split -f 4 '"'
end

complete -c %(program)s -e
complete -c %(program)s -f
%(lines)s
"""


def fish(program: Node) -> str:
    lines = [line for node in program.walk() for line in _fish_node(program, node)]
    with_values = [_quoted(f"{node.path} {name}") for node, name, _ in _with_values(program)]
    return FISH % {
        "program": program.name,
        "flags_with_values": " ".join(with_values) or "''",
        "paths": " ".join(_quoted(node.path) for node in program.walk() if node is not program) or "''",
        "passed_on": " ".join(PASSED_ON),
        "passed_on_equal": " ".join(f"'{name}=*'" for name in PASSED_ON),
        "ask_s": ASK_S,
        "lines": "\n".join(lines),
    }


def _fish_node(program: Node, node: Node) -> Iterator[str]:
    at = f"__modeld_at {_fish_quoted(node.path)}"
    begin = f"complete -c {program.name}"
    for inner in node.nodes:
        yield f"{begin} -n {_fish_quoted(f'{at} 0 0')} -a {inner.name} -d {_fish_quoted(inner.help)}"
    for flag in node.flags:
        names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
        value = "" if flag.value is None else f" {_fish_value(program, flag.value, is_optional=flag.optional)}"
        yield f"{begin} -n {_fish_quoted(at)} {names}{value} -d {_fish_quoted(flag.help)}"
    for place, first, last in _positions(node):
        where = f"{at} {first}" if last is None else f"{at} {first} {last}"
        offered = _fish_value(program, place.value, is_optional=True)
        if offered:
            yield f"{begin} -n {_fish_quoted(where)} {offered}"


def _fish_value(program: Node, value: Value, *, is_optional: bool) -> str:
    needed = "" if is_optional else "-x "
    match value.takes:
        case Takes.CHOICE:
            return f"{needed}-a {_fish_quoted(' '.join(value.choices))}"
        case Takes.FILE:
            return "-F" if is_optional else "-r -F"
        case Takes.FOLDER:
            return f"{needed}-a '(__fish_complete_directories)'"
        case Takes.MODEL | Takes.OP if _asks(program, value.takes):
            command, key = LISTED_BY[value.takes]
            return f"{needed}-a '(__modeld_ids {command} {key})'"
        case _:
            return needed.strip()


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


GENERATORS: dict[str, Callable[[Node], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
