# The bridge between blk and an nbdkit plugin written in Tcl: it speaks docs/exec-protocol.md on standard input and output
# and calls the procedures of the script named by its first argument. Given to the interpreter by blk; nothing is
# installed. What the script puts goes to standard error, since standard output is taken.
namespace eval ::blk {
    variable handles
    array set handles {}
    variable last_handle 0
    variable questions {is_rotational can_multi_conn can_write can_flush can_trim can_zero can_fast_zero can_extents}
    variable methods [concat {get_size pread config config_complete get_ready after_fork list_exports default_export
        preconnect export_description block_size can_fua can_cache pwrite trim zero cache extents} $questions]

    fconfigure stdin -translation binary -buffersize 262144
    fconfigure stdout -translation binary -buffering full -buffersize 262144

    # The script's name of a method; "" if it has none.
    proc name {method} {
        if {$method in {open close flush}} {set method plugin_$method}
        if {[llength [info procs ::$method]] == 0} {return ""}
        return ::$method
    }

    proc plain {word} {
        if {$word eq "-"} {return ""}
        while {[regexp -indices {%([0-9a-fA-F]{2})} $word whole digits]} {
            # One byte at a time, from the left, where no byte that was put in can be seen as a new escape.
            append result [string range $word 0 [expr {[lindex $whole 0] - 1}]]
            append result [format %c 0x[string range $word {*}$digits]]
            set word [string range $word [expr {[lindex $whole 1] + 1}] end]
        }
        append result $word
        return [encoding convertfrom utf-8 $result]
    }

    proc load_script {} {
        variable methods
        set path [lindex $::argv 0]
        set ::argv0 $path
        set ::argv {}
        set ::argc 0
        uplevel #0 [list source $path]
        foreach method {open get_size pread} {
            if {[name $method] eq ""} {
                error "the script does not define [expr {$method eq {open} ? {plugin_open} : $method}];\
                    plugin_open, get_size and pread are needed"
            }
        }
        set names {}
        foreach method [concat {open close flush} $methods] {
            if {[name $method] ne ""} {lappend names $method}
        }
        return [concat $names {magic_config_key dump_plugin unload}]
    }

    # A list: the kind of the answer, and its output.
    proc answer {method words data} {
        variable handles
        variable last_handle
        switch -- $method {
            load {return [list ok [load_script]]}
            magic_config_key {return {ok script}}
            unload {return {ok {}}}
            dump_plugin {
                if {[llength [info procs ::dump_plugin]]} {::dump_plugin}
                return [list ok "tcl_version=[info tclversion]\ntcl_patch_level=[info patchlevel]\n"]
            }
        }
        set proc [name $method]
        if {$proc eq ""} {return {missing {}}}
        switch -- $method {
            config {
                $proc [plain [lindex $words 0]] [plain [lindex $words 1]]
                return {ok {}}
            }
            open {
                set handle [$proc [expr {[lindex $words 0] eq "true"}]]
                incr last_handle
                set handles($last_handle) $handle
                return [list ok $last_handle]
            }
            preconnect {
                $proc [expr {[lindex $words 0] eq "true"}]
                return {ok {}}
            }
            default_export - list_exports {
                set result [$proc [expr {[lindex $words 0] eq "true"}] [expr {[lindex $words 1] eq "true"}]]
                if {$method eq "default_export"} {return [list ok "NAMES\n$result\n"]}
                set text "INTERLEAVED\n"
                foreach entry $result {append text "[lindex $entry 0]\n[lindex $entry 1]\n"}
                return [list ok $text]
            }
        }
        if {[llength $words] == 0} {
            $proc
            return {ok {}}
        }
        return [of_handle $method $proc $words $data]
    }

    proc of_handle {method proc words data} {
        variable handles
        variable questions
        lassign $words name count offset flags
        set handle $handles($name)
        switch -- $method {
            pread {
                set bytes [$proc $handle $count $offset]
                if {[string length $bytes] < $count} {
                    error "pread returned [string length $bytes] bytes instead of $count"
                }
                return [list ok [string range $bytes 0 [expr {$count - 1}]]]
            }
            pwrite {$proc $handle $data $offset}
            zero {$proc $handle $count $offset [string match *may_trim* $flags]}
            trim - cache {$proc $handle $count $offset}
            flush {$proc $handle}
            close {
                $proc $handle
                unset handles($name)
            }
            extents {
                set text ""
                foreach extent [$proc $handle $count $offset] {append text $extent \n}
                return [list ok $text]
            }
            default {
                set value [$proc $handle]
                if {$method in $questions} {return [list [expr {$value ? "ok" : "false"}] {}]}
                return [list ok $value]
            }
        }
        return {ok {}}
    }

    proc send {id kind bytes} {
        ::blk::put -nonewline stdout "$id $kind [string length $bytes]\n$bytes"
    }

    proc run {} {
        while {[gets stdin line] >= 0} {
            set words [split [string trim $line]]
            lassign $words id method length
            set data [expr {$length > 0 ? [read stdin $length] : ""}]
            if {[catch {answer $method [lrange $words 3 end] $data} result]} {
                set result [list error "EIO [string map {\n {; }} [string trim $result]]"]
            }
            lassign $result kind text
            if {$method ne "pread" || $kind ne "ok"} {set text [encoding convertto utf-8 $text]}
            send $id $kind $text
            flush stdout
        }
    }
}

# puts without a channel is the script's way to standard output.
rename ::puts ::blk::put
proc ::puts {args} {
    if {[llength $args] == 1} {
        ::blk::put stderr [lindex $args 0]
    } elseif {[llength $args] == 2 && [lindex $args 0] eq "-nonewline"} {
        ::blk::put -nonewline stderr [lindex $args 1]
    } else {
        ::blk::put {*}[string map {stdout stderr} [lrange $args 0 end-1]] [lindex $args end]
    }
}

::blk::run
