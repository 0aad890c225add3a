"""Chat templates that show tools, calls and results as the published templates of these forms do."""

QWEN3_CODER = """{%- for turn in messages %}
    {%- if loop.first and tools %}
        {{- '<|im_start|>system\n<tools>' }}
        {%- for tool in tools %}
            {{- '\n<function>\n<name>' ~ tool.function.name ~ '</name>' }}
            {%- for name, fields in (tool.function.parameters or {}).get('properties', {}).items() %}
                {{- '\n<parameter>\n<name>' ~ name ~ '</name>\n<type>' ~ fields.type ~ '</type>\n</parameter>' }}
            {%- endfor %}
            {{- '\n</function>' }}
        {%- endfor %}
        {{- '\n</tools><|im_end|>\n' }}
    {%- endif %}
    {%- if turn.tool_calls %}
        {{- '<|im_start|>assistant' ~ ('\n' ~ turn.content if turn.content else '') }}
        {%- for call in turn.tool_calls %}
            {{- '\n<tool_call>\n<function=' ~ call.function.name ~ '>\n' }}
            {%- for name, value in call.function.arguments.items() %}
                {%- set is_text = value is string %}
                {{- '<parameter=' ~ name ~ '>\n' ~ (value if is_text else value | tojson) ~ '\n</parameter>\n' }}
            {%- endfor %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif turn.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' ~ turn.content ~ '\n</tool_response>\n<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ turn.role ~ '\n' ~ turn.content ~ '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{{- '<|im_start|>assistant\n' }}
"""
LLAMA_31 = """{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if builtin_tools is defined or tools is not none %}
    {{- 'Environment: ipython\n' }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- 'Tools: ' ~ builtin_tools | reject('equalto', 'code_interpreter') | join(', ') ~ '\n' }}
{%- endif %}
{%- for tool in tools or () %}
    {{- tool | tojson ~ '\n' }}
    {%- if loop.last %}{{- 'Respond as {"name": function, "parameters": dictionary}.' }}{%- endif %}
{%- endfor %}
{{- '<|eot_id|>' }}
{%- for turn in messages %}
    {%- if turn.tool_calls %}
        {%- set call = turn.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
        {%- if builtin_tools is defined and call.name in builtin_tools %}
            {{- '<|python_tag|>' ~ call.name ~ '.call(' }}
            {%- for name, value in call.arguments | items %}
                {{- name ~ '="' ~ value ~ '"' ~ ('' if loop.last else ', ') }}
            {%- endfor %}
            {{- ')<|eom_id|>' }}
        {%- else %}
            {{- '{"name": "' ~ call.name ~ '", "parameters": ' ~ call.arguments | tojson ~ '}<|eot_id|>' }}
        {%- endif %}
    {%- else %}
        {%- set role = 'ipython' if turn.role == 'tool' else turn.role %}
        {{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' ~ turn.content ~ '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
"""
LLAMA_FUNCTION = """{%- for tool in tools or () %}
    {{- "Use the function '" ~ tool.function.name ~ "' as <function=name>{arguments}</function>\n" }}
{%- endfor %}
{%- for turn in messages %}
    {{- turn.role ~ ': ' ~ (turn.content or '') }}
    {%- for call in turn.tool_calls or () %}
        {{- '<function=' ~ call.function.name ~ '>' ~ call.function.arguments | tojson ~ '</function>' }}
    {%- endfor %}
    {{- '\n' }}
{%- endfor %}
"""
MISTRAL_V11 = """{{- '<s>' }}
{%- for turn in messages %}
    {%- if turn.role == 'system' %}
        {{- '[SYSTEM_PROMPT]' ~ turn.content ~ '[/SYSTEM_PROMPT]' }}
    {%- elif turn.role == 'user' %}
        {%- if tools and not messages[loop.index:] | selectattr('role', 'equalto', 'user') | list %}
            {{- '[AVAILABLE_TOOLS]' ~ tools | tojson ~ '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST]' ~ turn.content ~ '[/INST]' }}
    {%- elif turn.role == 'tool' %}
        {{- '[TOOL_RESULTS]' ~ turn.tool_call_id ~ '[TOOL_CONTENT]' ~ turn.content ~ '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- turn.content or '' }}
        {%- for call in turn.tool_calls or () %}
            {{- '[TOOL_CALLS]' ~ call.function.name ~ '[CALL_ID]' ~ call.id }}
            {{- '[ARGS]' ~ call.function.arguments | tojson }}
        {%- endfor %}
        {{- '</s>' }}
    {%- endif %}
{%- endfor %}
"""
MISTRAL_V13 = (
    MISTRAL_V11.replace("messages[loop.index:]", "messages[:loop.index0]")
    .replace(" ~ '[CALL_ID]' ~ call.id", "")
    .replace("turn.tool_call_id ~ '[TOOL_CONTENT]' ~ ", "")
)
"""The tools stand before the first user's text, in place of the last one's, and no id of a call is shown."""
